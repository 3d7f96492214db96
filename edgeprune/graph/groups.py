"""Units, groups and pins: what a model offers to remove, and what it refuses. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Slot(NamedTuple):
    """Positions along one dim of one tensor: `("features.0.weight", 0, (3,))`."""

    parameter: str
    dim: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """What goes or stays together: every slot of it. `index` counts within the group."""

    group: str
    index: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SlotTable:
    """The slots of all units of a group in one dim of one tensor.

    `positions` is int64 of shape (units, positions per unit), rows in unit order. `makes` is false
    for what only follows the width: a weight that contracts over it, a bias, a norm.
    """

    parameter: str
    dim: int
    size: int
    positions: NDArray[np.int64]
    makes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Units that compete for the same width: they have slots in the same dims.

    `name` is the first weight that makes the width, e.g. `layer1.0.conv1.weight`; `kind` is
    channel, neuron or head; `redefines` lists norms whose statistic the removal redefines;
    `depthwise` says that a depthwise convolution works on these units.
    """

    name: str
    kind: str
    tables: tuple[SlotTable, ...]
    redefines: tuple[str, ...] = ()
    depthwise: bool = False

    @property
    def width(self) -> int:
        """Number of units."""
        return int(self.tables[0].positions.shape[0])

    @property
    def makers(self) -> tuple[str, ...]:
        """The tensors that make the width, in graph order; all where none does."""
        made = [table.parameter for table in self.tables if table.makes]
        return tuple(dict.fromkeys(made or [table.parameter for table in self.tables]))

    def unit(self, index: int) -> Unit:
        """Unit number `index` with its slots."""
        slots = tuple(
            Slot(table.parameter, table.dim, tuple(int(p) for p in table.positions[index]))
            for table in self.tables
        )
        return Unit(self.name, index, slots)

    @property
    def units(self) -> Iterator[Unit]:
        """All units, made one at a time: a large model has hundreds of thousands of slots."""
        return (self.unit(index) for index in range(self.width))


@dataclass(frozen=True, slots=True)
class Pin:
    """A width, or a part of it, that may not go.

    `unit` names it for people (`fc.weight dim 0, 1000 positions`); `where` is `file:line`.
    """

    unit: str
    reason: str
    where: str
    node: str
    parameter: str
    dim: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """A tensor of the dense model; `same_as` names the tensor it is tied to."""

    name: str
    shape: tuple[int, ...]
    same_as: str | None = None
