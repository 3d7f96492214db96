"""What an analysis says about a model, as rows that a person or a program can read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.groups import Group
from edgeprune.graph.joins import Coupled, Joins, joins_of_groups
from edgeprune.planning.cost import Cost, cost
from edgeprune.surgery.saving import Saving, savings


@dataclass(frozen=True, slots=True, kw_only=True)
class CoupledRow:
    """A tensor dim that loses positions with a unit: how it is tied to the rest, and to what.

    `how` is `makes it` for weights that make the width and have no earlier tie.
    """

    tensor: str
    dim: int
    makes: bool
    how: str
    to: str
    node: str
    module: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One group: its width, what goes with a unit, and what that saves.

    `coupled` lists tensor dims such as `conv1.weight dim 0`, `ties` says how each came in.
    `params_per_unit` and `macs_per_unit` (a sample) go with the first unit; `share` and
    `macs_share` (0-1) of the whole model go with all units but one.
    """

    name: str
    kind: str
    width: int
    params_per_unit: int
    macs_per_unit: int
    share: float
    macs_share: float
    coupled: tuple[str, ...]
    ties: tuple[CoupledRow, ...]
    redefines: tuple[str, ...]
    depthwise: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PinReason:
    """Pins with the same reason at the same line: which, and in which module."""

    units: tuple[str, ...]
    reason: str
    where: str
    module: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A whole model: groups in graph order, pins gathered by reason and line, what was lost."""

    model: str
    params: int
    macs: int
    groups: tuple[GroupRow, ...]
    pins: tuple[PinReason, ...]
    unknown: tuple[str, ...]
    lost: tuple[str, ...]


def inspection(name: str, analysis: Analysis) -> Inspection:
    """The rows of an analysis."""
    total = cost(analysis.captured)
    saved = savings(analysis)
    joins = joins_of_groups(analysis)
    firsts = _first_labels(analysis)
    return Inspection(
        model=name,
        params=total.params,
        macs=total.macs,
        groups=tuple(
            _group_row(group, saved[group.name], total, joins, firsts[index])
            for index, group in enumerate(analysis.groups)
        ),
        pins=_pins(analysis),
        unknown=analysis.unknown,
        lost=analysis.captured.lost,
    )


def _first_labels(analysis: Analysis) -> list[int]:
    """For each group, the label of its first unit in the tensor that it is named after."""
    part = analysis.partition
    labels = {(a.owner, a.dim): a.first_label for a in analysis.walk.labels.axes if a.is_parameter}
    firsts = []
    for group in analysis.groups:
        named = [t for t in group.tables if t.makes and group.name.partition("#")[0] == t.parameter]
        table = (named or list(group.tables))[0]
        firsts.append(labels[table.parameter, table.dim] + int(table.positions[0, 0]))
    if not np.array_equal(part.unit_of_label[firsts], np.zeros(len(firsts))):
        raise RuntimeError("a group's first unit is number 0")
    return firsts


def _group_row(group: Group, saved: Saving, total: Cost, joins: Joins, label: int) -> GroupRow:
    makes = {(table.parameter, table.dim) for table in group.tables if table.makes}
    return GroupRow(
        name=group.name,
        kind=group.kind,
        width=group.width,
        params_per_unit=saved.unit.params,
        macs_per_unit=saved.unit.macs,
        share=saved.most.params / max(1, total.params),
        macs_share=saved.most.macs / max(1, total.macs),
        coupled=tuple(f"{table.parameter} dim {table.dim}" for table in group.tables),
        ties=tuple(
            coupled_row(found, (found.parameter, found.dim) in makes)
            for found in joins.coupled(label)
        ),
        redefines=group.redefines,
        depthwise=group.depthwise,
    )


def coupled_row(found: Coupled, makes: bool) -> CoupledRow:
    """A coupled tensor dim as a row."""
    step = found.step
    return CoupledRow(
        tensor=found.parameter,
        dim=found.dim,
        makes=makes,
        how="makes it" if step is None else step.how,
        to="" if step is None else step.before,
        node="" if step is None else step.node,
        module="" if step is None else step.module,
        where="" if step is None else step.where,
    )


def _pins(analysis: Analysis) -> tuple[PinReason, ...]:
    modules = {
        node.name: str(node.meta.get("module", "")) for node in analysis.captured.module.graph.nodes
    }
    places: dict[tuple[str, str], list[str]] = {}
    nodes: dict[tuple[str, str], str] = {}
    for pin in analysis.pins:
        places.setdefault((pin.reason, pin.where), []).append(pin.unit)
        nodes.setdefault((pin.reason, pin.where), pin.node)
    return tuple(
        PinReason(
            units=tuple(units),
            reason=reason,
            where=where,
            module=modules.get(nodes[reason, where], ""),
        )
        for (reason, where), units in places.items()
    )
