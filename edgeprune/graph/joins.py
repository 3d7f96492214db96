"""The joins that the walk recorded, as a graph: the shortest chain from one width to another.

A chain is a way through the nodes at which positions meet, e.g. from a layer's width to the output
of the model that pins it. Each step names the node, its operator, module and source line.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.labels import Axis
from edgeprune.graph.phrases import READ_BY, READS, REVERSED, TIED, operator_name, phrase_of
from edgeprune.graph.roles import reading_axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """At `node`, `before` and `after` meet, and so stay or go together.

    `how` says it in words (`added to`, `read by`); `before` and `after` are tensor dims such as
    `conv1.weight dim 0`, or dims of a value that the graph makes.
    """

    how: str
    before: str
    after: str
    node: str
    operator: str
    module: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupled:
    """A tensor dim that loses positions with a unit, and the step that ties it to the others.

    `step` is None for the dim that the search began at.
    """

    parameter: str
    dim: int
    step: Step | None


class Record:
    """All joins of an analysis in one table, and what is known of the dims that they join."""

    def __init__(self, analysis: Analysis) -> None:
        labels = analysis.walk.labels
        joined = labels.joined()
        none = np.zeros(0, dtype=np.int64)
        one = np.concatenate([none, *(one for one, _, _ in joined)])
        two = np.concatenate([none, *(two for _, two, _ in joined)])
        at = np.repeat(np.arange(len(joined)), [len(one) for one, _, _ in joined])
        real = (one != 0) & (two != 0) & (one != two)
        self.low = np.minimum(one, two)[real]
        self.high = np.maximum(one, two)[real]
        self.at = at[real]
        self.size = labels.next_label
        self._axes = labels.axes
        self._starts = np.array([axis.first_label for axis in labels.axes], dtype=np.int64)
        self._nodes = {node.name: node for node in analysis.captured.module.graph.nodes}
        self._names = [name for _, _, name in joined]
        self._reading = reading_axes(analysis.walk, analysis.captured.module)
        self._ties = {cause.node: cause.reason for _, cause in labels.tie_causes()}
        self._ranks = {tensor.name: len(tensor.shape) for tensor in analysis.tensors}

    def index(self, label: int) -> int:
        """The number of the dim that a label is a position of."""
        return int(np.searchsorted(self._starts, label, side="right")) - 1

    def axis(self, label: int) -> Axis:
        """The tensor dim that a label is a position of."""
        return self._axes[self.index(label)]

    def step(self, before: int, after: int, join: int) -> Step:
        """Join number `join` of two labels, in words."""
        node = self._nodes[self._names[join]]
        one, two = self.index(before), self.index(after)
        how = phrase_of(node)
        if one == two and node.name in self._ties:
            how = f"{TIED}, {self._ties[node.name]}, with"
        elif two in self._reading:
            how = READ_BY
        elif one in self._reading:
            how = READS
        elif self._is_vector(one) and not self._is_vector(two):
            how = REVERSED.get(how, how)
        return Step(
            how=how,
            before=_place(self._axes[one]),
            after=_place(self._axes[two]),
            node=node.name,
            operator=operator_name(node),
            module=str(node.meta.get("module", "")),
            where=str(node.meta.get("where", "")),
        )

    def _is_vector(self, index: int) -> bool:
        return self._ranks.get(self._axes[index].owner) == 1


class Joins:
    """The joins among some labels, to be searched."""

    def __init__(self, record: Record, wanted: NDArray[np.bool_]) -> None:
        """Take the joins among the `wanted` labels: bool of shape (labels,)."""
        self._record = record
        mine = wanted[record.low] & wanted[record.high]
        low, high, at = record.low[mine], record.high[mine], record.at[mine]
        _, first = np.unique(low * record.size + high, return_index=True)
        # Entry (a, b), a < b: 1 + the number of their first join.
        entries = (at[first] + 1, (low[first], high[first]))
        self._graph: csr_array = coo_array(
            entries, shape=(record.size, record.size), dtype=np.int64
        ).tocsr()

    def chain(self, source: int, goals: NDArray[np.int64]) -> tuple[Step, ...]:
        """The shortest way from a label to the nearest of `goals`.

        Empty where `source` is a goal itself, or none can be reached.
        """
        order, before = self._tree(source)
        reached = order[np.isin(order, goals)]
        path = [int(reached[0])] if len(reached) else [source]
        while path[-1] != source:
            path.append(int(before[path[-1]]))
        return tuple(self._step(a, b) for a, b in pairwise(reversed(path)))

    def coupled(self, source: int) -> tuple[Coupled, ...]:
        """Every tensor dim that goes with a label, nearest first."""
        order, before = self._tree(source)
        found: dict[int, Coupled] = {}
        for label in order.tolist():
            index, axis = self._record.index(label), self._record.axis(label)
            if axis.is_parameter and index not in found:
                step = None if label == source else self._step(int(before[label]), label)
                found[index] = Coupled(parameter=axis.owner, dim=axis.dim, step=step)
        return tuple(found.values())

    def _tree(self, source: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Labels by distance from `source`, and each one's neighbour on the way back."""
        order, before = breadth_first_order(self._graph, source, directed=False)
        return np.asarray(order, dtype=np.int64), np.asarray(before, dtype=np.int64)

    def _step(self, before: int, after: int) -> Step:
        low, high = min(before, after), max(before, after)
        return self._record.step(before, after, int(self._graph[low, high]) - 1)


def joins_of_groups(analysis: Analysis) -> Joins:
    """The joins of the first unit of every group: the other units are joined alike."""
    return Joins(Record(analysis), analysis.partition.unit_of_label == 0)


def first_label(analysis: Analysis, parameter: str, dim: int, position: int = 0) -> int:
    """The label of a position of a tensor dim; 0 where it has none."""
    for axis in analysis.walk.labels.axes:
        if axis.owner == parameter and axis.dim == dim:
            return axis.first_label + position
    return 0


def _place(axis: Axis) -> str:
    return f"{axis.owner} dim {axis.dim}"
