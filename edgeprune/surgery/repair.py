"""Repair without training: refit what reads a shortened width so that it gives what it gave.

Full-kernel least squares: after inputs of a reader are removed, its whole weight is fitted anew so
that on calibration samples it reproduces the dense layer's output, given the shrunk model's own
inputs. In graph order, so that each layer also mends what the ones before it could not. The idea
is that of He et al. 2017 (arXiv 1707.06168) and Luo et al. 2017 (ThiNet, arXiv 1707.06342).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import fx
from torch.utils import _pytree as pytree

from edgeprune.errors import InternalError, UsageError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.inputs import map_tensors
from edgeprune.graph.module import CapturedModule
from edgeprune.planning.plan import Plan
from edgeprune.surgery.prune import Pruned
from edgeprune.surgery.repair_goals import Goal, goal_of
from edgeprune.surgery.repair_readers import LeftAlone, Reader, find_readers
from edgeprune.surgery.repair_report import LayerRepair, Repair, Tally
from edgeprune.surgery.repair_samples import Calibration, Portion, read_calibration
from edgeprune.surgery.repair_solve import Equations
from edgeprune.surgery.repair_walk import SideBySide
from edgeprune.surgery.survivors import Survivors, survivors

# What the values of all portions may hold together, see SideBySide.
_BOUND_BYTES = 2**30

# Rows a reader is fitted on: several for each unknown, within limits.
_ROWS_PER_COLUMN = 64
_FEWEST_ROWS = 2048
_MOST_ROWS = 8192

# A reader with few samples for its unknowns may fit them too closely: then a stronger ridge, which
# stays nearer to the weights as they were, can still help. The held-out samples choose.
_STRENGTHS = (1.0, 30.0)

_SEED = 0


def repair(
    pruned: Pruned, batches: Iterable[object], *, samples: int = 512, ridge: float = 1e-3
) -> Pruned:
    """A copy of `pruned` whose model is repaired on `batches` of inputs; `repaired` tells how.

    A batch is an array, tensor, tuple or dict of inputs, batch first, without labels. `pruned`
    itself is not changed; the proof, made before repair, is kept. See `refit`.
    """
    model = copy.deepcopy(pruned.model)
    report = refit(pruned.analysis, pruned.plan, model, batches, samples=samples, ridge=ridge)
    return replace(pruned, model=model, repaired=report)


def refit(
    analysis: Analysis,
    plan: Plan,
    module: CapturedModule,
    batches: Iterable[object],
    *,
    samples: int = 512,
    ridge: float = 1e-3,
) -> Repair:
    """Refit the readers of `module` (in place), which `shrink(analysis, plan)` gave.

    The reference is the analysed model. The first `samples` samples are read; three of four fit,
    the fourth judges: a layer whose held-out error does not fall is left alone, and where the
    model's outputs as a whole do not come closer everything is undone. A weight read at several
    places, or computed, is left alone. Weights with `requires_grad=False` are refitted like
    others: removal has changed what they are for. BatchNorm and all other buffers stay. In eval
    mode, without gradients; the same samples give the same weights.

    Memory, besides the samples: 1 GiB of values between layers, the values of one portion of at
    most 64 samples, and the equations of one layer (8,192 rows at most).
    Raises `DataError` for fewer than 2 samples, inputs unlike the example's, NaN or infinity;
    `UsageError` for a negative ridge or fewer than 2 samples asked for.
    """
    if samples < 2:
        raise UsageError(
            f"repair at samples: expected at least 2, got {samples}. A few hundred are enough."
        )
    if not (math.isfinite(ridge) and ridge >= 0):
        raise UsageError(f"repair at ridge: expected at least 0, got {ridge}. Leave it at 1e-3.")
    left = survivors(analysis, plan)
    dense = analysis.captured.module
    calibration = read_calibration(analysis.captured, batches, samples)
    with torch.no_grad(), _at_rest(module), _at_rest(dense):
        wanted = [_outputs(dense, portion) for portion in calibration.held_out]
        before = _output_error(module, calibration, wanted)
        saved = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
        layers = _refit_all_(left, module, calibration, ridge)
        after = _output_error(module, calibration, wanted)
        accepted = any(layer.accepted for layer in layers)
        kept = not accepted or _rank(after) < _rank(before)
        if not kept:
            for parameter, value in saved:
                parameter.copy_(value)
    return Repair(
        layers=layers,
        samples=calibration.count,
        output_error_before=before,
        output_error_after=after if kept else before,
        kept=kept,
        why=_verdict(layers, before, after),
    )


def _verdict(layers: tuple[LayerRepair, ...], before: float, after: float) -> str:
    accepted = sum(layer.accepted for layer in layers)
    if not layers:
        return "nothing to repair: every layer reads what it read"
    if not accepted:
        return f"no weight was changed: none of {len(layers)} layers came closer"
    figures = f"output error {after:.3g} on held-out samples, {before:.3g} without repair"
    if _rank(after) < _rank(before):
        return f"{accepted} of {len(layers)} layers refitted: {figures}"
    return f"undone, as the model as a whole is no better for it: {figures}"


def _refit_all_(
    left: Survivors, module: CapturedModule, calibration: Calibration, ridge: float
) -> tuple[LayerRepair, ...]:
    found = find_readers(left, module)
    portions = (*calibration.fitted, *calibration.held_out)
    walk = SideBySide(left.analysis.captured.module, module, portions, _BOUND_BYTES)
    goals = _goals(left, module, [each for each in found if isinstance(each, Reader)])
    return tuple(
        LayerRepair(
            name=each.name,
            error_before=None,
            error_after=None,
            accepted=False,
            why=f"left alone: {each.why}",
        )
        if isinstance(each, LeftAlone)
        else _refit_one_(each, goals[each.node], left, walk, calibration, ridge)
        for each in found
    )


def _goals(left: Survivors, module: CapturedModule, readers: list[Reader]) -> dict[fx.Node, Goal]:
    """What each reader is to give; a goal may lie behind it, but not behind the next reader."""
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    goals: dict[fx.Node, Goal] = {}
    fence = len(places)
    for reader in reversed(readers):
        goals[reader.node] = goal_of(left, module, reader.node, fence)
        fence = places[reader.node]
    return goals


def _refit_one_(
    reader: Reader,
    goal: Goal,
    left: Survivors,
    walk: SideBySide,
    calibration: Calibration,
    ridge: float,
) -> LayerRepair:
    """Fit on the fitted portions, judge on the held-out ones, change the weight if it helps."""
    walk.approach(reader.node.name, goal.reached.name)
    equations = _equations(reader, goal, left, walk, calibration)
    ridges = tuple(ridge * factor for factor in _STRENGTHS)
    solved = equations.solve(ridges, bias=reader.bias is not None)
    proposals = [_fitting(reader, weight, bias) for weight, bias in solved]
    channel = reader.layout.output_dim
    without, trials = Tally(channel), [Tally(channel) for _ in proposals]
    for index in range(len(calibration.fitted), len(walk)):
        value, values = walk.at(index)
        wanted = goal.wanted(left, value, values)
        without.add(goal.heard(reader.output(values)), wanted)
        for trial, (weight, bias) in zip(trials, proposals, strict=True):
            trial.add(goal.heard(reader.output(values, weight, bias)), wanted)
    best = min(range(len(trials)), key=lambda index: _rank(trials[index].error))
    before, after = without.error, trials[best].error
    accepted = _rank(after) < _rank(before)
    if accepted:
        weight, bias = proposals[best]
        reader.weight.copy_(weight)
        if reader.bias is not None and bias is not None:
            reader.bias.copy_(bias)
    verb = "refitted" if accepted else "left alone"
    return LayerRepair(
        name=reader.name,
        error_before=before,
        error_after=after,
        accepted=accepted,
        why=f"{verb}: held-out error {after:.3g} with, {before:.3g} without",
    )


def _equations(
    reader: Reader, goal: Goal, left: Survivors, walk: SideBySide, calibration: Calibration
) -> Equations:
    """Rows drawn from every fitted portion."""
    equations = Equations(reader.layout, reader.weight)
    limit = min(max(_ROWS_PER_COLUMN * equations.columns, _FEWEST_ROWS), _MOST_ROWS)
    count = sum(portion.count for portion in calibration.fitted)
    generator = torch.Generator().manual_seed(_SEED)
    for index, portion in enumerate(calibration.fitted):
        value, values = walk.at(index)
        share = math.ceil(limit * portion.count / count)
        source = values[reader.source]
        if not isinstance(source, torch.Tensor):
            raise InternalError(f"repair at {reader.name}: expected it to read a tensor.")
        wanted = goal.asked(goal.wanted(left, value, values), partial(reader.output, values))
        equations.add(*reader.layout.rows(source, wanted, share, generator))
    return equations


def _fitting(
    reader: Reader, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A solution in the dtype, shape and layout of the reader's parameters."""
    kernel = weight.to(reader.weight.dtype).reshape(reader.weight.shape).contiguous()
    return kernel, None if bias is None else bias.to(reader.weight.dtype)


def _rank(error: float) -> float:
    """NaN is as bad as infinity."""
    return error if math.isfinite(error) else math.inf


def _outputs(module: CapturedModule, portion: Portion) -> tuple[torch.Tensor, ...]:
    device = next((t.device for t in (*module.parameters(), *module.buffers())), None)
    inputs = map_tensors(portion.inputs, lambda tensor: tensor.detach().to(device).clone())
    leaves = pytree.tree_leaves(module(*inputs.args, **inputs.kwargs))
    return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def _output_error(
    module: CapturedModule, calibration: Calibration, wanted: list[tuple[torch.Tensor, ...]]
) -> float:
    """Mean over the outputs of their errors on the held-out samples."""
    tallies = [Tally(None) for _ in wanted[0]]
    for portion, references in zip(calibration.held_out, wanted, strict=True):
        for tally, got, reference in zip(
            tallies, _outputs(module, portion), references, strict=True
        ):
            tally.add(got, reference)
    return sum(tally.error for tally in tallies) / max(len(tallies), 1)


@contextmanager
def _at_rest(module: CapturedModule) -> Iterator[None]:
    """Eval mode inside; afterwards modes and buffers (counters, caches) are what they were."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.copy_(value)
