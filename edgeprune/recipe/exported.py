"""A model from a `.pt2` file: the graph that torch.export made, and its sample inputs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.recipe.archive import read_archive


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exported:
    """The module of an exported program; `args` is None where the file has no sample inputs."""

    module: nn.Module
    args: tuple[object, ...] | None
    kwargs: Mapping[str, object]


def load_exported(path: Path) -> Exported:
    """The model of a `.pt2` file. Nothing that lies in the file is executed, see `archive`.

    Raises UsageError for a file that is not there, is no such archive, or is refused.
    """
    if not path.is_file():
        raise UsageError(
            f"loading the model at {path}: expected a file, got none. Give its path relative to "
            f"the recipe or the current directory.",
            where=str(path),
        )
    archive = read_archive(path)
    try:
        program = torch.export.load(io.BytesIO(archive.content))
        # Guards would be compiled from text; the shapes they ask for are found by running.
        module = program.module(check_guards=False)
        _tie_(module)
    except Exception as error:  # torch raises anything on a document that it does not understand
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"loading the model at {path}: expected a program that torch {torch.__version__} "
            f"reads, got {type(error).__name__}: {why}. Export it again with this torch.",
            where=str(path),
        ) from error
    sample = archive.sample
    return Exported(
        module=module,
        args=None if sample is None else sample.args,
        kwargs={} if sample is None else sample.kwargs,
    )


def _tie_(module: nn.Module) -> None:
    """Make names that share their numbers one tensor again (in place).

    An archive keeps the numbers of a tied weight once, but gives each name a tensor of its own:
    they would be trained, and pruned, as two.
    """
    first: dict[tuple[object, ...], torch.Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.numel() == 0:
            continue
        key = (tensor.data_ptr(), tensor.dtype, *tensor.shape, *tensor.stride())
        same = first.setdefault((*key, isinstance(tensor, nn.Parameter)), tensor)
        if same is not tensor:
            path, _, last = name.rpartition(".")
            setattr(module.get_submodule(path), last, same)
