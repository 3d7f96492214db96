"""Compose: two plans, one after the other, as one plan of the dense model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeprune.errors import PlanError
from edgeprune.graph.analysis import Analysis
from edgeprune.planning.allocate import Request
from edgeprune.planning.plan import KeptAxis, KeptGroup, Plan, make_plan
from edgeprune.surgery.survivors import WholeUnits, whole_units


def compose(analysis: Analysis, first: Plan, second: Plan) -> Plan:
    """The plan of the dense model that removes what `first`, then `second`, remove.

    `analysis` is of the dense model, `first` in its coordinates, `second` in those of the model
    that `first` leaves. Replaying the result on the dense model gives the same shapes. Its `groups`
    count whole units of the dense model; `axes` say all that goes.
    Raises `PlanError` when the two do not follow each other.
    """
    axes = {(axis.parameter, axis.dim): axis for axis in first.axes}
    for later in second.axes:
        key = (later.parameter, later.dim)
        earlier = axes.get(key)
        if earlier is None:
            axes[key] = later
            continue
        if len(earlier.keep) != later.size:
            raise PlanError(
                f"compose at {later.parameter} dim {later.dim}: expected a second plan for "
                f"{len(earlier.keep)} positions, got {later.size}. Give the plans in order.",
                where=later.parameter,
            )
        kept = np.array(earlier.keep)[list(later.keep)]
        axes[key] = KeptAxis(
            parameter=later.parameter, dim=later.dim, size=earlier.size, keep=tuple(kept.tolist())
        )
    combined = Plan(
        criterion=second.criterion,
        allocation=second.allocation,
        keep_fraction=first.keep_fraction * second.keep_fraction,
        multiple=second.multiple,
        groups=(),
        axes=tuple(axes.values()),
        tensors=first.tensors,
    )
    found = whole_units(analysis, combined)
    if found.problem is not None:
        # Of one head that is left, the second plan may remove a part: `shrink` knows how.
        return replace(combined, groups=_kept_groups(analysis, found))
    request = Request(combined.keep_fraction, combined.allocation, combined.multiple)
    return make_plan(analysis, found.removed, request, combined.criterion)


def _kept_groups(analysis: Analysis, found: WholeUnits) -> tuple[KeptGroup, ...]:
    return tuple(
        KeptGroup(
            name=group.name,
            kind=group.kind,
            width=group.width,
            keep=tuple(np.flatnonzero(~found.removed[group.name]).tolist()),
        )
        for group in analysis.groups
    )
