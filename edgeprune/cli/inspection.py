"""What an analysis says about a model, as rows that a person or a program can read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.groups import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One group: its width, what goes with a unit, and what removing one unit saves.

    `coupled` lists tensor dims such as `conv1.weight dim 0`; `params_per_unit` counts parameters;
    `share` (0-1) is that of all parameters which would go with the whole group.
    """

    name: str
    kind: str
    width: int
    params_per_unit: float
    share: float
    coupled: tuple[str, ...]
    redefines: tuple[str, ...]
    depthwise: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PinReason:
    """Pins with the same reason at the same line: which, how many positions."""

    units: tuple[str, ...]
    reason: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A whole model: groups in graph order, pins gathered by reason and line, what was lost."""

    model: str
    params: int
    groups: tuple[GroupRow, ...]
    pins: tuple[PinReason, ...]
    unknown: tuple[str, ...]
    lost: tuple[str, ...]


def inspection(name: str, analysis: Analysis) -> Inspection:
    """The rows of an analysis."""
    parameters = dict(analysis.captured.module.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    total = sum(value.numel() for value in parameters.values())
    places: dict[tuple[str, str], list[str]] = {}
    for pin in analysis.pins:
        places.setdefault((pin.reason, pin.where), []).append(pin.unit)
    return Inspection(
        model=name,
        params=total,
        groups=tuple(_group_row(group, shapes, total) for group in analysis.groups),
        pins=tuple(
            PinReason(units=tuple(units), reason=reason, where=where)
            for (reason, where), units in places.items()
        ),
        unknown=analysis.unknown,
        lost=analysis.captured.lost,
    )


def _group_row(group: Group, shapes: dict[str, tuple[int, ...]], total: int) -> GroupRow:
    whole = _owned(group, shapes, group.width)
    return GroupRow(
        name=group.name,
        kind=group.kind,
        width=group.width,
        params_per_unit=round(_owned(group, shapes, 1), 3),
        share=whole / total if total else 0.0,
        coupled=tuple(f"{table.parameter} dim {table.dim}" for table in group.tables),
        redefines=group.redefines,
        depthwise=group.depthwise,
    )


def _owned(group: Group, shapes: dict[str, tuple[int, ...]], units: int) -> float:
    """Parameters that go with so many units: in each tensor, what is in none of the dims that stay.

    A (16, 8) weight of which a unit is one row loses 8 values with it; one row and one column,
    8 + 16 - 1.
    """
    staying: dict[str, float] = {}
    for table in group.tables:
        if table.parameter in shapes:
            left = 1 - units * table.positions.shape[1] / table.size
            staying[table.parameter] = staying.get(table.parameter, 1.0) * left
    return sum(math.prod(shapes[name]) * (1 - share) for name, share in staying.items())
