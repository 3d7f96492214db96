"""From labels to units, groups and pins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeprune.graph.groups import Group, Pin, SlotTable
from edgeprune.graph.labels import Axis, Cause, Labels, identity, varying
from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.operators import CONVOLUTIONS, cell_parameters
from edgeprune.graph.propagate import Walk
from edgeprune.graph.roles import is_of_numbers, making_axes

_ALONE = "all positions stand or fall together, so the width is all or nothing"
_NUMBERS = "its width is that of fixed numbers of the model, as if it were data"


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """Groups in graph order, pins, and the (group, unit) of every label (-1 where none)."""

    groups: tuple[Group, ...]
    pins: tuple[Pin, ...]
    group_of_label: NDArray[np.int64]
    unit_of_label: NDArray[np.int64]


def settle_boxes(found: Walk) -> NDArray[np.int64]:
    """Classes of all labels after every value with labels along several dims is rectangular.

    A tensor of shape (heads, head dim) can lose whole rows or whole columns only. Where the graph
    itself does not decide (attention ties heads), the side with more units is the one that
    stays divisible.
    """
    # The same box stands at many nodes: every view and pointwise operator passes it on.
    boxes = {identity(layer): (node, layer) for node, layer in found.boxes}
    while True:
        classes = found.labels.classes()
        before = found.labels.joins()
        fixed = _reasons(found.labels, classes).of_class[classes] >= 0
        # What is pinned stays whatever its class: one number for all of it.
        seen = np.where(fixed, -1, classes)
        busy: set[int] = set()
        for node, layer in boxes.values():
            table = seen[layer.numpy()]
            own = set(np.unique(table).tolist())
            # Two boxes of the same units must not choose in the same round: the second one's
            # choice depends on the first one's.
            if not own & busy and not _is_settled(table):
                found.labels.at = node
                _settle_box(found.labels, layer, table)
                busy |= own - {-1}
        if found.labels.joins() == before:
            return classes


def _is_settled(table: NDArray[np.int64]) -> bool:
    """Whether every class fills whole slices across one and the same side of the box."""
    sides = [dim for dim, size in enumerate(table.shape) if size > 1]
    return any(
        bool((table == _first(table, tuple(d for d in sides if d != dim))).all()) for dim in sides
    )


def _settle_box(labels: Labels, layer: torch.Tensor, table: NDArray[np.int64]) -> None:
    """Tie the box across the side with most classes; of equal ones, the outermost."""
    dims = varying(layer)

    def classes_along(dim: int) -> int:
        return len(np.unique(_first(table, tuple(d for d in dims if d != dim))))

    best = max(dims, key=lambda dim: (classes_along(dim), -dim))
    anchor = layer
    for other in dims:
        anchor = anchor if other == best else anchor.narrow(other, 0, 1)
    labels.join(layer, anchor)


def _first(table: NDArray[np.int64], dims: tuple[int, ...]) -> NDArray[np.int64]:
    index = tuple(slice(0, 1) if d in dims else slice(None) for d in range(table.ndim))
    return table[index]


def partition(found: Walk, module: CapturedModule) -> Partition:
    """Group the units and name the pins.

    Units with slots in the same dims of the same tensors, the same number in each, compete for
    the same width: they form a group.
    """
    classes = settle_boxes(found)
    reasons = _reasons(found.labels, classes)
    ranks = _ranks(module)
    redefined = _redefinitions(found, classes)
    depthwise = _depthwise_weights(module)
    gated = {str(p.target) for node in module.graph.nodes for p in cell_parameters(node)}
    makers = making_axes(found, module, ranks)
    members = _members(found.labels, classes, reasons)
    pins = _pins(found.labels, classes, reasons, ranks)
    place = np.full((2, int(classes.max()) + 1), -1, dtype=np.int64)
    offered: list[tuple[tuple[tuple[int, int], ...], list[int]]] = []
    for signature, units in members.items():
        if len(units) == 1:
            cause = _alone(found.labels, classes, units[0])
            pins += _pinned(found.labels, classes, units, signature, cause)
        elif is_of_numbers(found.labels, signature, makers, module):
            cause = Cause(_NUMBERS, "", "")
            pins += _pinned(found.labels, classes, units, signature, cause)
        else:
            place[:, units] = np.full(len(units), len(offered)), np.arange(len(units))
            offered.append((signature, units))
    group_of, unit_of = place[0][classes], place[1][classes]
    names: set[str] = set()
    groups = []
    for index, (signature, units) in enumerate(offered):
        tables = _tables(found.labels.axes, signature, group_of, unit_of, index, makers)
        nodes = dict.fromkeys(name for cls in units for name in redefined.get(cls, ()))
        groups.append(
            Group(
                name=_name(tables, names, ranks),
                kind=_kind(tables, ranks, gated),
                tables=tables,
                redefines=tuple(nodes),
                depthwise=any(table.parameter in depthwise for table in tables),
            )
        )
        names.add(groups[-1].name)
    return Partition(tuple(groups), tuple(pins), group_of, unit_of)


def _members(
    labels: Labels, classes: NDArray[np.int64], reasons: _Reasons
) -> dict[tuple[tuple[int, int], ...], list[int]]:
    """Classes that are not pinned by signature: their (axis index, number of positions) pairs.

    Signatures and the classes of each in the order of their first position in a parameter.
    """
    sizes = [axis.size if axis.is_parameter else 0 for axis in labels.axes]
    index = np.repeat(np.arange(len(sizes)), sizes)
    place = np.concatenate(
        [np.zeros(0, dtype=np.int64)]
        + [np.arange(a.first_label, a.first_label + a.size) for a in labels.axes if a.is_parameter]
    )
    free = reasons.of_class[classes[place]] < 0
    index, cls = index[free], classes[place[free]]
    # One pair a class and axis, sorted by class and then by axis.
    pairs, first, counts = np.unique(
        cls * len(sizes) + index, return_index=True, return_counts=True
    )
    owner, axis = np.divmod(pairs, max(len(sizes), 1))
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    ends = np.append(starts[1:], len(owner))
    rows = np.stack([axis, counts], axis=1)
    members: dict[bytes, tuple[int, int, list[int]]] = {}
    # `first` of a class's first axis is its first position of all.
    for number in np.argsort(first[starts]):
        low, high = int(starts[number]), int(ends[number])
        entry = members.setdefault(rows[low:high].tobytes(), (low, high, []))
        entry[2].append(int(owner[low]))
    return {
        tuple((int(a), int(n)) for a, n in rows[low:high]): units
        for low, high, units in members.values()
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Reasons:
    """Why classes are pinned: per class an index into `causes`, -1 where it is not."""

    of_class: NDArray[np.int64]
    causes: tuple[Cause, ...]


def _reasons(labels: Labels, classes: NDArray[np.int64]) -> _Reasons:
    """Every pinned class with its first cause that is not by nature, else its first."""
    beside = (labels.beside_zero(), Cause("laid beside positions that cannot go", "", ""))
    # Stable: in graph order, those by nature behind the others.
    ranked = [*sorted(labels.pin_causes(), key=lambda pair: pair[1].by_nature), beside]
    of_class = np.full(int(classes.max()) + 1, -1, dtype=np.int64)
    for number in reversed(range(len(ranked))):
        of_class[classes[ranked[number][0]]] = number
    return _Reasons(of_class, tuple(cause for _, cause in ranked))


def _redefinitions(found: Walk, classes: NDArray[np.int64]) -> dict[int, list[str]]:
    nodes: dict[int, list[str]] = defaultdict(list)
    for item in found.redefinitions:
        for cls in np.unique(classes[item.layer.numpy()]):
            nodes[int(cls)].append(item.node)
    return nodes


def _depthwise_weights(module: CapturedModule) -> frozenset[str]:
    """Weights of convolutions with one input channel a group and several groups."""
    names = set()
    for node in module.graph.nodes:
        if node.target in CONVOLUTIONS and len(node.args) > 6 and node.args[6] != 1:
            weight = node.args[1]
            if isinstance(weight, fx.Node) and weight.op == "get_attr":
                tensor = attribute(module, str(weight.target))
                if isinstance(tensor, torch.Tensor) and tensor.shape[1] == 1:
                    names.add(str(weight.target))
    return frozenset(names)


def _tables(
    axes: list[Axis],
    signature: tuple[tuple[int, int], ...],
    group_of: NDArray[np.int64],
    unit_of: NDArray[np.int64],
    group: int,
    makers: frozenset[int],
) -> tuple[SlotTable, ...]:
    """Where the units of group number `group` lie."""
    tables = []
    for index, count in signature:
        axis = axes[index]
        span = slice(axis.first_label, axis.first_label + axis.size)
        positions = np.flatnonzero(group_of[span] == group)
        order = np.argsort(unit_of[span][positions], kind="stable")
        rows = positions[order].reshape(-1, count)
        tables.append(SlotTable(axis.owner, axis.dim, axis.size, rows, index in makers))
    return tuple(tables)


def _name(tables: Sequence[SlotTable], taken: set[str], ranks: Mapping[str, int]) -> str:
    """The first weight that makes this width (dim 0 of a matrix), numbered if taken."""
    rows = [t for t in tables if t.dim == 0 and ranks[t.parameter] > 1]
    makers = [t for t in rows if t.makes]
    name = (makers or rows or list(tables))[0].parameter
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}#{number}", number + 1
    return unique


def _ranks(module: CapturedModule) -> dict[str, int]:
    """Number of dims of every tensor by name: what the graph reads, and other names of it."""
    targets = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    tensors: dict[str, object] = dict(module.state_dict(keep_vars=True))
    tensors |= {target: attribute(module, target) for target in targets}
    return {name: t.dim() for name, t in tensors.items() if isinstance(t, torch.Tensor)}


def _kind(tables: Sequence[SlotTable], ranks: Mapping[str, int], gated: Set[str]) -> str:
    """A head takes several rows of a projection and several columns of what reads it; conv weights
    have channels; else neurons.

    A neuron of a gated layer takes two rows of the fused matrix, but one column of the next; a
    hidden unit of a recurrent cell takes a row a gate. A bias of positions has one row or column a
    head beside.
    """
    matrices = [t for t in tables if ranks[t.parameter] == 2]
    rows = [t.positions.shape[1] for t in matrices if t.dim == 0]
    columns = [t.positions.shape[1] for t in matrices if t.dim == 1]
    if any(t.dim == 0 and t.parameter in gated for t in matrices):
        return "neuron"
    if rows and columns and max(rows) > 1 and max(columns) > 1:
        return "head"
    if any(ranks[table.parameter] > 2 for table in tables if table.dim < 2):
        return "channel"
    if matrices and not (rows and columns) and min(rows or columns) > 1:
        return "head"
    return "neuron"


def _pins(
    labels: Labels,
    classes: NDArray[np.int64],
    reasons: _Reasons,
    ranks: Mapping[str, int],
) -> list[Pin]:
    """One pin an axis and cause, leaving out what is pinned by nature and in one tensor alone.

    A vector (bias, norm) is named only where no matrix is pinned for the same cause.
    """
    found: dict[Cause, list[tuple[str, int, list[int]]]] = defaultdict(list)
    shared = _shared(labels, classes)
    for axis in labels.axes:
        if not axis.is_parameter:
            continue
        mine = classes[axis.first_label : axis.first_label + axis.size]
        why = reasons.of_class[mine]
        by_cause: dict[Cause, list[int]] = defaultdict(list)
        for number in dict.fromkeys(why.tolist()):
            cause = None if number < 0 else reasons.causes[number]
            here = why == number
            if cause is not None and (not cause.by_nature or shared[mine[here]].any()):
                by_cause[cause] += np.flatnonzero(here).tolist()
        for cause, positions in by_cause.items():
            found[cause].append((axis.owner, axis.dim, sorted(positions)))
    pins = []
    for cause, places in found.items():
        matrices = [place for place in places if ranks[place[0]] > 1]
        pins += [_pin(*place, cause) for place in matrices or places]
    return pins


def _shared(labels: Labels, classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of every class, whether it has positions in several dims of the model's tensors."""
    count = np.zeros(int(classes.max()) + 1, dtype=np.int64)
    for axis in labels.axes:
        if axis.is_parameter:
            count[np.unique(classes[axis.first_label : axis.first_label + axis.size])] += 1
    return count > 1


def _alone(labels: Labels, classes: NDArray[np.int64], cls: int) -> Cause:
    cause = Cause(_ALONE, "", "")
    for flat, tie in labels.tie_causes():
        if (classes[flat] == cls).any():
            cause = Cause(f"{_ALONE}: {tie.reason}", tie.node, tie.where)
    return cause


def _pinned(
    labels: Labels,
    classes: NDArray[np.int64],
    units: Sequence[int],
    signature: tuple[tuple[int, int], ...],
    cause: Cause,
) -> list[Pin]:
    """A pin for each dim of a tensor in which these classes have positions."""
    pins = []
    for index, _ in signature:
        axis = labels.axes[index]
        own = classes[axis.first_label : axis.first_label + axis.size]
        mine = np.flatnonzero(np.isin(own, units)).tolist()
        pins.append(_pin(axis.owner, axis.dim, mine, cause))
    return pins


def _pin(parameter: str, dim: int, positions: list[int], cause: Cause) -> Pin:
    return Pin(
        unit=f"{parameter} dim {dim}, {len(positions)} positions",
        reason=cause.reason,
        where=cause.where,
        node=cause.node,
        parameter=parameter,
        dim=dim,
        positions=tuple(positions),
    )
