"""A step's model on disk: the plan so far and the weights. What goes on is what was read back.

A run continues from its checkpoints also when nothing interrupts it, so that a resumed run takes
the very same path.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as safetensors_bytes

from edgeprune.errors import UsageError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.module import CapturedModule
from edgeprune.planning.plan import Plan, read_plan
from edgeprune.release.bundle import make_durable
from edgeprune.release.manifest import sha256_of
from edgeprune.surgery.shrink import shrink

_PLAN, _WEIGHTS = "plan.json", "weights.safetensors"


class Checkpoint(BaseModel):
    """Name of a step's folder and the SHA-256 of the files in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    plan_sha256: str
    weights_sha256: str


def write_checkpoint(folder: Path, name: str, plan: Plan, module: CapturedModule) -> Checkpoint:
    """Put plan and weights into `folder/name`, whole or not at all, durably."""
    place, growing = folder / name, folder / f"{name}.part"
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    plan.save(growing / _PLAN)
    state = {key: _plain(value) for key, value in module.state_dict().items()}
    (growing / _WEIGHTS).write_bytes(safetensors_bytes(state))
    found = Checkpoint(
        name=name,
        plan_sha256=sha256_of(growing / _PLAN),
        weights_sha256=sha256_of(growing / _WEIGHTS),
    )
    make_durable(growing / _PLAN, growing / _WEIGHTS, growing)
    shutil.rmtree(place, ignore_errors=True)
    growing.rename(place)
    make_durable(folder)
    return found


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of its own: safetensors refuses memory that two names share."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def read_checkpoint(
    folder: Path, checkpoint: Checkpoint, dense: Analysis
) -> tuple[Plan, CapturedModule]:
    """The plan so far, and the dense model shrunk by it with the checkpoint's weights.

    Raises UsageError when a file is missing or is not the one that was written.
    """
    place = folder / checkpoint.name
    wanted = {_PLAN: checkpoint.plan_sha256, _WEIGHTS: checkpoint.weights_sha256}
    for name, digest in wanted.items():
        path = place / name
        if not path.is_file() or sha256_of(path) != digest:
            raise UsageError(
                f"going on with the run at {path}: expected the file that the run wrote, got "
                f"{'another content' if path.is_file() else 'none'}. Put it back, or start over "
                f"with --fresh.",
                where=str(path),
            )
    plan = read_plan((place / _PLAN).read_text(encoding="utf-8"), where=str(place / _PLAN))
    module = shrink(dense, plan)
    try:
        module.load_state_dict(read_safetensors((place / _WEIGHTS).read_bytes()))
    except (RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"going on with the run at {place / _WEIGHTS}: expected weights of the recipe's "
            f"model, got {error}. The model's code has changed; start over with --fresh.",
            where=str(place),
        ) from error
    return plan, module
