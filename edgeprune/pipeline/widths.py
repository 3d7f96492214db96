"""Which units the next round removes: shares of the dense widths, scores of the current model.

A round could ask for a share of what the last one left. But widths are rounded: 32 units at
multiples of 16, cut to 84 % four times, stay 32 each time, although half was asked for in all. So
each step plans anew on the dense widths, with what is gone already scored below everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeprune.graph.analysis import Analysis
from edgeprune.planning.allocate import Request
from edgeprune.planning.plan import Plan, make_plan, plan_for
from edgeprune.scoring.scores import Scores
from edgeprune.surgery.compose import compose

# Below every score; an allocation takes no mean over it.
_GONE = -np.inf


def wanted_plan(dense: Analysis, so_far: Plan | None, scores: Scores, request: Request) -> Plan:
    """What should be gone after the next step, in the dense model's coordinates.

    `scores` are the current model's; units that are gone already come last in every ranking.
    """
    values = _in_dense_units(dense, kept_units(dense, so_far), scores)
    return plan_for(dense, Scores(scores.criterion, values), request)


def step_plan(
    dense: Analysis,
    current: Analysis,
    so_far: Plan | None,
    wanted: Plan,
    scores: Scores,
    request: Request,
) -> Plan:
    """The plan of the current model that brings it to `wanted`."""
    kept = kept_units(dense, so_far)
    stays = {group.name: set(group.keep) for group in wanted.groups}
    removed = {}
    for group in current.groups:
        units = kept.get(group.name)
        goes = np.zeros(group.width, dtype=bool)
        # A group that surgery changed beyond recognition is left as it is.
        if units is not None and len(units) == group.width:
            goes = np.array([int(unit) not in stays[group.name] for unit in units], dtype=bool)
        removed[group.name] = goes
    removed = current.spare(removed, scores.values)
    return make_plan(current, removed, request, scores.criterion)


def whole_plan(dense: Analysis, so_far: Plan | None, step: Plan, keep_fraction: float) -> Plan:
    """Everything removed up to and including `step`, in the dense model's coordinates."""
    total = step if so_far is None else compose(dense, so_far, step)
    return replace(total, keep_fraction=keep_fraction)


def empty_plan(dense: Analysis, request: Request, criterion: str) -> Plan:
    """The plan that removes nothing."""
    nothing = {group.name: np.zeros(group.width, dtype=bool) for group in dense.groups}
    return make_plan(dense, nothing, request, criterion)


def kept_units(dense: Analysis, so_far: Plan | None) -> dict[str, NDArray[np.int64]]:
    """Dense indices of the units that each group still has, sorted: its units today, in order."""
    if so_far is None:
        return {group.name: np.arange(group.width) for group in dense.groups}
    return {group.name: np.array(group.keep, dtype=np.int64) for group in so_far.groups}


def _in_dense_units(
    dense: Analysis, kept: Mapping[str, NDArray[np.int64]], scores: Scores
) -> dict[str, NDArray[np.float64]]:
    values = {}
    for group in dense.groups:
        full = np.full(group.width, _GONE)
        units, current = kept[group.name], scores.values.get(group.name)
        full[units] = current if current is not None and len(current) == len(units) else 1.0
        values[group.name] = full
    return values
