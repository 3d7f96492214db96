"""Labels: one integer per position of every removable axis, and what ties them together.

Label 0 means "not removable". Joins and pins are only recorded while the graph is walked; the
classes are computed once, vectorised, at the end (connected components).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True, slots=True)
class Cause:
    """Why positions were pinned or tied: a reason for people, the node, its source line.

    `by_nature` marks what nobody would expect to be removable (kernel sizes, token positions of
    a table that is added to data), so that reports stay readable.
    """

    reason: str
    node: str
    where: str
    by_nature: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """A dim of a parameter, buffer, constant or created tensor; its labels are consecutive."""

    owner: str
    dim: int
    first_label: int
    size: int
    is_parameter: bool


# Address, shape and strides of a tensor.
Identity: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor of the graph as the label walk sees it.

    `shape` is the real shape at the example inputs. Each layer is an int64 tensor that broadcasts
    to it (size 1 where it does not vary); entry = the label of the position that an element
    belongs to. A parameter has one layer a dim, most activations have one layer along channels.
    """

    shape: tuple[int, ...]
    layers: tuple[torch.Tensor, ...] = ()


def varying(layer: torch.Tensor) -> tuple[int, ...]:
    """Dims along which a layer varies."""
    return tuple(dim for dim, size in enumerate(layer.shape) if size > 1)


def identity(layer: torch.Tensor) -> Identity:
    """Equal for two layers that are the same view of the same storage, while both are alive."""
    return layer.data_ptr(), tuple(layer.shape), layer.stride()


@dataclass(frozen=True, slots=True, eq=False)
class _Join:
    """Two layers, held so that nothing else takes their place in memory, and their labels."""

    layers: tuple[torch.Tensor, torch.Tensor]
    flat: tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class Labels:
    """The record of one walk. Mutable: rules add to it through `Trace`.

    `at` names the node that is being walked: every join is recorded with it.
    """

    axes: list[Axis] = field(default_factory=list)
    next_label: int = 1
    at: str = ""
    _created: set[int] = field(default_factory=set)
    _pairs: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    _nodes: list[str] = field(default_factory=list)
    # Two layers meet at many nodes and from both sides: what connects labels is kept once.
    _distinct: dict[tuple[Identity, Identity], _Join] = field(default_factory=dict)
    _pins: list[tuple[torch.Tensor, Cause]] = field(default_factory=list)
    _ties: list[tuple[torch.Tensor, Cause]] = field(default_factory=list)
    # Of each label the one that it was tied to; long enough for all labels only when asked.
    _anchors: torch.Tensor = field(default_factory=lambda: torch.arange(1024))

    def fresh(self, owner: str, dim: int, size: int, *, is_parameter: bool) -> torch.Tensor:
        """New labels for a dim: int64 of shape (size,)."""
        first = self.next_label
        self.next_label += size
        if not is_parameter:
            self._created.update(range(first, first + size))
        self.axes.append(Axis(owner, dim, first, size, is_parameter))
        return torch.arange(first, first + size)

    def is_created(self, layer: torch.Tensor) -> bool:
        """Whether a layer's positions were made by the graph, not by a parameter."""
        return int(layer.reshape(-1)[0]) in self._created

    def join(self, one: torch.Tensor, two: torch.Tensor) -> None:
        """Positions that meet element by element stand or fall together (broadcasting)."""
        first, second = identity(one), identity(two)
        if (known := self._distinct.get((first, second))) is not None:
            pair = known.flat
        elif (known := self._distinct.get((second, first))) is not None:
            pair = known.flat[1], known.flat[0]
        else:
            shape = np.broadcast_shapes(tuple(one.shape), tuple(two.shape))
            pair = one.expand(shape).reshape(-1), two.expand(shape).reshape(-1)
            self._distinct[first, second] = _Join((one, two), pair)
        self._pairs.append(pair)
        self._nodes.append(self.at)

    def tie(self, layer: torch.Tensor, dims: tuple[int, ...], cause: Cause) -> None:
        """Join all positions of `layer` that differ only along `dims`."""
        if all(layer.shape[dim] == 1 for dim in dims):
            return
        anchor = layer
        for dim in dims:
            anchor = anchor.narrow(dim, 0, 1)
        self.join(layer, anchor)
        self._ties.append((layer.reshape(-1), cause))
        known = self._known_anchors()
        known[layer] = known[anchor].expand(layer.shape)
        known[0] = 0  # what is pinned is tied to nothing

    def tied(self, layer: torch.Tensor, dims: tuple[int, ...]) -> bool:
        """Whether ties alone already join all positions that differ only along `dims`.

        A box (2, 8) after `tie` along dim 0: true of (0,), false of (1,).
        """
        found = self._known_anchors()[layer]
        anchor = found
        for dim in dims:
            anchor = anchor.narrow(dim, 0, 1)
        return bool((found == anchor).all())

    def _known_anchors(self) -> torch.Tensor:
        if len(self._anchors) < self.next_label:
            longer = torch.arange(2 * self.next_label)
            longer[: len(self._anchors)] = self._anchors
            self._anchors = longer
        return self._anchors

    def pin(self, layer: torch.Tensor, cause: Cause) -> None:
        """These positions may not be removed."""
        flat = layer.reshape(-1)
        if bool((flat != 0).any()):
            self._pins.append((flat, cause))

    def classes(self) -> NDArray[np.int64]:
        """Class of every label by joins alone, int64 of shape (labels,).

        A join with label 0 does not connect: it pins the other side (see `pinned`).
        """
        edges = self._edges()
        one, two = edges
        edges = edges[:, (one != 0) & (two != 0) & (one != two)]
        matrix = coo_array(
            (np.ones(edges.shape[1], dtype=np.int8), (edges[0], edges[1])),
            shape=(self.next_label, self.next_label),
        )
        _, labels = connected_components(matrix, directed=False)
        return np.asarray(labels, dtype=np.int64)

    def joins(self) -> int:
        """How many joins were recorded so far."""
        return len(self._pairs)

    def joined(
        self, nodes: Set[str] | None = None
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64], str]]:
        """Every join in graph order: labels of one side and the other, and the node's name.

        `nodes`: only the joins at these.
        """
        pairs = zip(self._pairs, self._nodes, strict=True)
        return [
            (one.numpy(), two.numpy(), node)
            for (one, two), node in pairs
            if nodes is None or node in nodes
        ]

    def _edges(self) -> NDArray[np.int64]:
        if not self._distinct:
            return np.zeros((2, 0), dtype=np.int64)
        pairs = [torch.stack(join.flat) for join in self._distinct.values()]
        return torch.cat(pairs, dim=1).numpy()

    def beside_zero(self) -> NDArray[np.int64]:
        """Labels joined with a position that carries none."""
        edges = self._edges()
        one, two = edges
        return np.unique(edges[:, (one == 0) | (two == 0)])

    def pin_causes(self) -> list[tuple[NDArray[np.int64], Cause]]:
        """What was pinned and why, in graph order."""
        return [(flat.numpy(), cause) for flat, cause in self._pins]

    def tie_causes(self) -> list[tuple[NDArray[np.int64], Cause]]:
        """What was tied along an axis and why, in graph order."""
        return [(flat.numpy(), cause) for flat, cause in self._ties]
