"""Draft export: a graph of the way that the example takes, where torch.export finds no one way.

Where an `if` or a size depends on values, draft export takes what it was on the example for
granted. That is right for a check that never fails, and wrong for a real choice; so every such
assumption is told, and the graph is compared with eager on several other inputs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import traceback
from collections.abc import Iterator

import torch
from torch import nn
from torch._logging import structured
from torch._logging._internal import DTRACE_ENV_VAR
from torch.export import ExportedProgram, draft_export
from torch.utils import _pytree as pytree

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.comparison import relative_error
from edgeprune.graph.inputs import Inputs, clone, map_tensors, vary
from edgeprune.graph.module import CapturedModule
from edgeprune.graph.provenance import user_line
from edgeprune.recipe.trial import same_buffers

Shapes = dict[str, object] | tuple[object, ...] | list[object] | None
"""What torch.export takes for dynamic_shapes."""

# Of floating-point inputs; below 1, that share of the integers and booleans stays.
_FACTORS = (1.0, 8.0, -1.0, 0.5, -0.1, 0.0)
_TOLERANCE = 1e-4
_DEPENDENT = "DATA_DEPENDENT_ERROR"


def draft(model: nn.Module, inputs: Inputs, shapes: Shapes) -> ExportedProgram:
    """Draft export of `model`, non-strict; raises what torch raises."""
    given = clone(inputs)
    with _traces_thrown_away():
        try:
            return draft_export(
                model, given.args, given.kwargs, dynamic_shapes=shapes, strict=False
            )
        except Exception as error:
            _forget_locals(error)
            raise


def _forget_locals(error: BaseException | None) -> None:
    """What frames of a failed draft hold, the open file of its trace among it, can go."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _traces_thrown_away() -> Iterator[None]:
    """torch writes a trace with the user's code into a temporary file and leaves it there, open."""
    before = os.environ.get(DTRACE_ENV_VAR)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[DTRACE_ENV_VAR] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[DTRACE_ENV_VAR]
            else:
                os.environ[DTRACE_ENV_VAR] = before
            gc.collect()


def assumptions(program: ExportedProgram) -> tuple[str, ...]:
    """What a draft took for granted of values, a line each; empty for any other program.

    "`if y.sum() >= 0:` (model.py:12) depends on values: True, as for the example"
    """
    report = getattr(program, "_report", None)
    if report is None:
        return ()
    # torch writes numbers for file names, and not all of them into the report.
    files = {number: name for name, number in structured.INTERN_TABLE.items()}
    files |= report.str_to_filename
    found = []
    for failure in report.failures:
        if failure.failure_type.name != _DEPENDENT:
            continue
        stack = failure.data["user_stack"]
        line = user_line([(files.get(f["filename"], ""), int(f["line"])) for f in stack])
        code = stack[-1]["loc"] or failure.data["expr"]
        found.append(
            f"`{code}` ({line}) depends on values: {failure.data['result']}, as for the example"
        )
    return tuple(dict.fromkeys(found))


def require_one_way(
    model: nn.Module, module: CapturedModule, inputs: Inputs, assumed: tuple[str, ...]
) -> None:
    """Eager and graph on inputs of other sizes and signs; integers and booleans lose some to 0.

    An input that eager refuses says nothing. Raises ModelNotSupported, with the assumptions, where
    one takes another way.
    """
    for seed, factor in enumerate(_FACTORS):
        trial = _unlike(vary(inputs, seed=2 + seed), factor, seed)
        try:
            want = _outputs(model, trial)
        except Exception:  # whatever the user's code raises there
            continue
        try:
            have = _outputs(module, trial)
        except (RuntimeError, IndexError, ValueError) as error:
            raise other_way(assumed, str(error).strip().splitlines()[0]) from error
        if not _same(want, have):
            raise other_way(assumed, "other outputs than eager's")


def _outputs(model: nn.Module, inputs: Inputs) -> list[object]:
    given = clone(inputs)
    with same_buffers(model):
        return pytree.tree_leaves(model(*given.args, **given.kwargs))


def _unlike(inputs: Inputs, factor: float, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def unlike(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return tensor * factor
        stays = torch.rand(tensor.shape, generator=generator) < abs(factor)
        return torch.where(stays.to(tensor.device), tensor, torch.zeros_like(tensor))

    return map_tensors(inputs, unlike)


def _same(want: list[object], have: list[object]) -> bool:
    ours = [leaf for leaf in want if isinstance(leaf, torch.Tensor)]
    theirs = [leaf for leaf in have if isinstance(leaf, torch.Tensor)]
    return len(ours) == len(theirs) and all(
        one.shape == other.shape and relative_error(one, other) <= _TOLERANCE
        for one, other in zip(ours, theirs, strict=True)
    )


def other_way(assumed: tuple[str, ...], got: str) -> ModelNotSupported:
    """The refusal of a model whose values choose its way."""
    return ModelNotSupported(
        f"capture at {'; '.join(assumed)}: expected the same way through the model for every "
        f"input, got {got} on another input than the example. Rewrite that line without Python "
        "control flow that depends on values of the input.",
        where=assumed[0],
    )
