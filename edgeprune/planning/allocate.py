"""Allocation: how many units each group keeps, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import PlanError
from edgeprune.graph.groups import Group, TensorShape
from edgeprune.planning.selection import Selection, Terms, terms

# ONNX Runtime leaves its blocked path on a depthwise width that is no multiple of 4 and runs
# about four times slower; so even without a target these widths are rounded.
DEPTHWISE_MULTIPLE = 4
# With `global`, no group falls below this share: a width of one or two units is a bottleneck that
# a score of single units cannot see.
GLOBAL_FLOOR = 0.1

ALLOCATIONS = ("uniform", "global")


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked of a plan; validated here."""

    keep_fraction: float = 0.5
    allocation: str = "uniform"
    multiple: int = 1
    depthwise_multiple: int = DEPTHWISE_MULTIPLE
    selection: Selection = field(default_factory=Selection)

    @property
    def removes(self) -> bool:
        """Whether anything is to go."""
        return self.keep_fraction < 1.0 or self.selection.removes

    def __post_init__(self) -> None:
        share: object = self.keep_fraction
        if isinstance(share, bool) or not isinstance(share, float | int) or not 0 < share <= 1:
            raise PlanError(
                f"plan at keep_fraction: expected a share above 0, at most 1, got "
                f"{share!r}. 0.5 keeps half of the units."
            )
        if self.allocation not in ALLOCATIONS:
            raise PlanError(
                f"plan at allocation: expected one of {', '.join(ALLOCATIONS)}, got "
                f"{self.allocation!r}. uniform cuts every group alike."
            )
        for name in ("multiple", "depthwise_multiple"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise PlanError(
                    f"plan at {name}: expected a whole number of at least 1, got "
                    f"{count!r}. 1 means no rounding."
                )


def allocate(
    groups: tuple[Group, ...],
    scores: Mapping[str, NDArray[np.float64]],
    request: Request,
    tensors: tuple[TensorShape, ...] = (),
) -> dict[str, NDArray[np.int64]]:
    """Sorted indices of the units that stay, by group name; `tensors` tell which are tied."""
    held = terms(groups, request.selection, tensors)
    free = [g for g in groups if not held[g.name].whole and held[g.name].fraction is None]
    if request.allocation == "uniform":
        counts = {g.name: request.keep_fraction * g.width for g in free}
    else:
        counts = _global_counts(free, held, scores, request)
    kept = {}
    for group in groups:
        own = held[group.name]
        count = group.width
        if not own.whole:
            asked = counts.get(group.name, (own.fraction or 0.0) * group.width)
            count = round_width(group, asked, request, own.least)
        # Stable: of equal scores the first positions stay.
        best = np.argsort(-scores[group.name], kind="stable")[:count]
        kept[group.name] = np.sort(best)
    return kept


def _global_counts(
    groups: list[Group],
    held: Mapping[str, Terms],
    scores: Mapping[str, NDArray[np.float64]],
    request: Request,
) -> dict[str, float]:
    """Rank the units of `groups` together, each score divided by its group's mean.

    Without the division, groups with more weights a unit would always win.
    """
    counts = {group.name: 0.0 for group in groups}
    ranked: list[tuple[float, str]] = []
    total = sum(group.width for group in groups)
    for group in groups:
        values = scores[group.name]
        alive = values[np.isfinite(values)]  # -inf: gone since an earlier round
        # Scores of a group that the loss does not see are all 0: then there is no scale.
        mean = float(alive.mean()) if alive.size else 0.0
        order = np.sort(values)[::-1] / (mean if mean > 0 else 1.0)
        floor = max(held[group.name].least, math.ceil(GLOBAL_FLOOR * group.width))
        counts[group.name] = float(floor)
        ranked += [(float(value), group.name) for value in order[floor:]]
    ranked.sort(key=lambda pair: -pair[0])
    left = round(request.keep_fraction * total) - int(sum(counts.values()))
    for _, name in ranked[: max(left, 0)]:
        counts[name] += 1.0
    return counts


def quantum(group: Group, request: Request) -> int:
    """Smallest number of units whose positions are a multiple of `multiple` in every matrix.

    A head with 64 rows is a multiple of 16 by itself: 1. A channel with 1 row: 16.
    """
    step = 1
    for table in group.tables:
        a_unit = int(table.positions.shape[1])
        step = math.lcm(step, _units(request.multiple, a_unit))
    if group.depthwise:
        a_unit = max(int(table.positions.shape[1]) for table in group.tables)
        step = math.lcm(step, _units(request.depthwise_multiple, a_unit))
    return step


def _units(multiple: int, a_unit: int) -> int:
    """How many units of `a_unit` positions make a multiple."""
    return multiple // math.gcd(multiple, a_unit)


def round_width(group: Group, wanted: float, request: Request, least: int = 1) -> int:
    """The nearest allowed number of units, at least `least` and one step, at most all.

    Width 40, multiple 16: 20 -> 16, 24 -> 32 (halves go up), 35 -> 32, 36 -> 40 (all of it).
    """
    step = quantum(group, request)
    allowed = [n for n in range(step, group.width, step) if n >= least]
    allowed.append(group.width)
    # Widest first: of two that are equally near, min() takes the wider.
    return int(min(reversed(allowed), key=lambda count: abs(count - wanted)))
