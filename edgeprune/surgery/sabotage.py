"""Sabotage: deliberately wrong comparisons that a meaningful proof must reject."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.groups import Group, SlotTable
from edgeprune.graph.module import attribute, set_tensor
from edgeprune.graph.precision import forget
from edgeprune.planning.plan import Plan
from edgeprune.surgery.deviation import deviation

Kind = Literal["kept unit silenced", "removed unit left loud", "index swapped in one slot"]

_GROUPS = 3
# A unit may be dead (behind a ReLU that never fires); so many are tried before giving up.
_TRIES = 5
# Groups that the outputs hardly hear (a part of a tensor that is never read, attention that one
# token takes whole) are passed over, so many.
_FAINT_GROUPS = 4
# One unit alone, or the difference of two, moves an output by less than all of a group's do.
_FAINT_MARGINS = 10


class Trial(Protocol):
    """What sabotage needs of a comparison."""

    @property
    def analysis(self) -> Analysis:
        """Of the dense model."""

    @property
    def pruned(self) -> torch.nn.Module:
        """The shrunk model."""

    @property
    def dense(self) -> torch.nn.Module:
        """The unedited captured graph, in the precision of this trial."""

    def silenced(self, kept: NDArray[np.bool_]) -> tuple[object, ...]:
        """Flat outputs of the dense graph with everything not kept silenced."""

    def shrunk(self) -> tuple[object, ...]:
        """Flat outputs of the shrunk model."""

    def run(self, model: torch.nn.Module) -> tuple[object, ...]:
        """Flat outputs of any model that takes the same inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sabotage:
    """One wrong comparison: it was `detected` if its error reached the margin."""

    kind: Kind
    group: str
    error: float
    detected: bool


def sabotage(
    trial: Trial,
    plan: Plan,
    removed: Mapping[str, NDArray[np.bool_]],
    reference: tuple[object, ...],
    margin: float,
    seed: int,
) -> tuple[tuple[Sabotage, ...], tuple[str, ...]]:
    """Three kinds of sabotage in each of up to three groups, spread over the network.

    `margin` is the error that each must reach on some live unit. The second value names groups
    that were passed over, as all of their removed units together are heard by less than ten.
    """
    candidates = [g for g in trial.analysis.groups if removed[g.name].any()]
    wanted = min(_GROUPS, len(candidates))
    picks = np.unique(np.linspace(0, len(candidates) - 1, wanted).round().astype(int))
    # The picked groups first, spread over the network; others stand in for faint ones.
    order = [*picks, *(i for i in range(len(candidates)) if i not in picks)]
    generator = np.random.default_rng(seed)
    results: list[Sabotage] = []
    shrunk = trial.shrunk()
    faint: list[str] = []
    found = 0
    for index in order:
        if found == wanted or len(faint) > _FAINT_GROUPS:
            break
        group = candidates[index]
        mask = removed[group.name]
        stays = generator.permutation(np.flatnonzero(~mask))
        goes = generator.permutation(np.flatnonzero(mask))
        tries = _in_group(trial, plan, removed, group, stays, goes, shrunk, reference, margin)
        told = all(one.detected for one in tries)
        least = _FAINT_MARGINS * margin
        if not told and _heard_in_all(trial, removed, group, reference) < least:
            faint.append(group.name)
            continue
        results += tries
        found += 1
    return tuple(results), tuple(faint)


def _heard_in_all(
    trial: Trial,
    removed: Mapping[str, NDArray[np.bool_]],
    group: Group,
    reference: tuple[object, ...],
) -> float:
    """How far the outputs move when all of a group's removed units are heard."""
    loud = trial.analysis.kept_labels({**removed, group.name: np.zeros(group.width, dtype=bool)})
    return deviation(trial.silenced(loud), reference)


def _in_group(
    trial: Trial,
    plan: Plan,
    removed: Mapping[str, NDArray[np.bool_]],
    group: Group,
    stays: NDArray[np.int64],
    goes: NDArray[np.int64],
    shrunk: tuple[object, ...],
    reference: tuple[object, ...],
    margin: float,
) -> list[Sabotage]:
    def silence_kept(units: NDArray[np.int64]) -> float:
        wrong = _changed(trial.analysis, removed, group, units, gone=True)
        return deviation(shrunk, trial.silenced(wrong))

    def leave_loud(units: NDArray[np.int64]) -> float:
        wrong = _changed(trial.analysis, removed, group, units, gone=False)
        return deviation(shrunk, trial.silenced(wrong))

    kept, gone = list(stays), list(goes)
    results = []
    if len(stays) > 1:
        # Silencing the only unit left would empty the width.
        error, live = _heard(stays, silence_kept, margin)
        results.append(_judged("kept unit silenced", group, error, margin))
        kept = [live, *kept]
    error, live = _heard(goes, leave_loud, margin)
    results.append(_judged("removed unit left loud", group, error, margin))
    if kept:
        # A group may lose all its units where the rest of the width is pinned.
        pairs = list(zip(kept, [live, *gone], strict=False))[:_TRIES]
        tables = _weights(trial.dense, group)
        # The units that were heard, in each of their tensors; then others.
        tries = [(*pairs[0], table) for table in tables[:_TRIES]]
        tries += [(*pair, tables[i % len(tables)]) for i, pair in enumerate(pairs[1:], 1)]
        worst = 0.0
        for one, other, table in tries:
            model = _swapped(trial, plan, table, int(one), int(other))
            worst = max(worst, deviation(trial.run(model), reference))
            forget(model)
            if worst >= margin:
                break
        results.append(_judged("index swapped in one slot", group, worst, margin))
    return results


def _heard(
    units: NDArray[np.int64], attempt: Callable[[NDArray[np.int64]], float], margin: float
) -> tuple[float, int]:
    """The largest error that sabotaging one unit gave, and the unit; a live one if there is.

    Behind a ReLU most units may be dead. If the first few are, a set that is heard is halved until
    one unit is left.
    """
    errors = []
    for unit in units[:_TRIES]:
        errors.append(attempt(np.array([unit])))
        if errors[-1] >= margin:
            return errors[-1], int(unit)
    left = units[_TRIES:]
    while len(left):
        halves = [half for half in np.array_split(left, 2) if len(half)]
        found = [attempt(half) for half in halves]
        best = int(np.argmax(found))
        if found[best] < margin:
            break
        if len(halves[best]) == 1:
            return found[best], int(halves[best][0])
        left = halves[best]
    return max(errors), int(units[int(np.argmax(errors))])


def _judged(kind: Kind, group: Group, error: float, margin: float) -> Sabotage:
    return Sabotage(kind=kind, group=group.name, error=error, detected=error >= margin)


def _changed(
    analysis: Analysis,
    removed: Mapping[str, NDArray[np.bool_]],
    group: Group,
    units: NDArray[np.int64],
    *,
    gone: bool,
) -> NDArray[np.bool_]:
    mask = removed[group.name].copy()
    mask[units] = gone
    return analysis.kept_labels({**removed, group.name: mask})


def _swapped(trial: Trial, plan: Plan, table: SlotTable, kept: int, gone: int) -> torch.nn.Module:
    """The shrunk model with one tensor holding a removed unit's values in a kept unit's place.

    It shares its other parameters with the shrunk model: they are read, never written.
    """
    shared: dict[int, object] = {id(tensor): tensor for tensor in trial.pruned.parameters()}
    model = copy.deepcopy(trial.pruned, shared)
    dense = attribute(trial.dense, table.parameter)
    small = attribute(model, table.parameter)
    if not isinstance(dense, torch.Tensor) or not isinstance(small, torch.Tensor):
        raise RuntimeError(f"{table.parameter} is not a tensor")
    axes = {axis.dim: axis for axis in plan.axes if axis.parameter == table.parameter}
    source = dense.detach()
    for dim, axis in axes.items():
        keep = np.array(axis.keep)
        if dim == table.dim:
            for old, new in zip(table.positions[kept], table.positions[gone], strict=True):
                keep[keep == old] = new
        source = source.index_select(dim, torch.from_numpy(keep))
    # A shared layer has several names, and the graph may read another than the table's.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor is small:
            set_tensor(model, name, source.to(small.dtype))
    set_tensor(model, table.parameter, source.to(small.dtype))
    return model


def _weights(dense: torch.nn.Module, group: Group) -> list[SlotTable]:
    """Slots in matrices: a swapped bias or norm may be too faint to see."""
    found = []
    for table in group.tables:
        tensor = attribute(dense, table.parameter)
        if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.is_floating_point():
            found.append(table)
    return found or list(group.tables)
