"""Write what is delivered: two ONNX files, the plan, the model as data, the parity record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import edgeprune
from edgeprune.errors import ModelNotSupported
from edgeprune.exporting.agreement import torch_outputs
from edgeprune.exporting.onnx import Artifact, export
from edgeprune.gates.parity import ParityRecord, write_parity
from edgeprune.graph.capture import Captured
from edgeprune.graph.inputs import Inputs
from edgeprune.pipeline.load import save
from edgeprune.pipeline.preparation import Job
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.rounds import Pruning
from edgeprune.recipe.data import Split, batches_of, to_numpy
from edgeprune.recipe.evaluate import to_inputs
from edgeprune.recipe.feeding import batch_size

MODEL = "model.onnx"
PLAN = "plan.json"
PARITY = "parity.npz"
DENSE = "dense.onnx"
PARITY_SAMPLES = 32
"""Enough to see every output vary; a float32 image of 224 x 224 makes 19 MB of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delivery:
    """Both models exported the same way, and torch's answers on real inputs for the pruned one."""

    dense: Artifact
    pruned: Artifact
    parity: ParityRecord


def deliver(job: Job, pruning: Pruning, staging: Path, work: Path, progress: Progress) -> Delivery:
    """Export both models and write the bundle's data files into `staging`, the dense into `work`.

    Raises ModelNotSupported where torch.onnx or ONNX Runtime refuses the model.
    """
    origin = _origin(job, pruning)
    progress.stage("export the dense model")
    dense = export_captured(job, job.dense.captured, work / DENSE, origin)
    progress.stage("export the pruned model")
    captured = pruning.state.analysis.captured
    pruned = export_captured(job, captured, staging / MODEL, origin)
    pruning.plan.save(staging / PLAN)
    try:
        save(captured.module, staging)
    except ModelNotSupported as error:  # the build is whole without it, but the user must know
        progress.note(str(error))
    held = job.data.validation if job.data.calibration is None else job.data.calibration
    record = parity_record(captured, pruned, held)
    write_parity(staging / PARITY, record)
    return Delivery(dense=dense, pruned=pruned, parity=record)


def export_captured(
    job: Job, captured: Captured, path: Path, origin: tuple[tuple[str, str], ...]
) -> Artifact:
    """Export as the recipe says; `origin` goes into the metadata."""
    return export(
        captured.module,
        path,
        captured.args,
        captured.kwargs,
        opset=job.recipe.export.opset,
        dynamic_batch=captured.dynamic_batch,
        metadata=origin,
    )


def _origin(job: Job, pruning: Pruning) -> tuple[tuple[str, str], ...]:
    """What the metadata of both files says of their making."""
    return (
        ("edgeprune.model", job.model_name),
        ("edgeprune.plan_sha256", pruning.plan.fingerprint),
        ("edgeprune.recipe_sha256", job.recipe_sha256),
        ("edgeprune.target", job.target.name),
        ("edgeprune.version", edgeprune.__version__),
    )


def _first_samples(
    split: Split, count: int
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """At most `count` samples: of one sample alone an output could not be seen to vary."""
    batches = []
    seen = 0
    for inputs, _ in batches_of(split):
        batches.append(to_inputs(inputs))
        seen += batch_size(inputs)
        if seen >= count:
            break
    args = zip(*(given for given, _ in batches), strict=True)
    names = batches[0][1]
    return (
        tuple(torch.cat(tensors)[:count] for tensors in args),
        {name: torch.cat([given[name] for _, given in batches])[:count] for name in names},
    )


def parity_record(captured: Captured, artifact: Artifact, split: Split) -> ParityRecord:
    """The first PARITY_SAMPLES inputs, from as many batches as it takes, and torch's answers.

    A model of a fixed batch gets exactly that many samples.
    """
    fixed = None if captured.dynamic_batch else captured.inputs.batch_size
    args, kwargs = _first_samples(split, fixed or PARITY_SAMPLES)
    outputs = torch_outputs(captured.module, Inputs(args=args, kwargs=dict(kwargs)))
    by_name = dict(zip((info.name for info in artifact.inputs), args, strict=False)) | kwargs
    return ParityRecord(
        inputs={name: to_numpy(tensor) for name, tensor in by_name.items()},
        outputs=dict(zip((info.name for info in artifact.outputs), outputs, strict=True)),
    )
