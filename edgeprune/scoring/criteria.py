"""Criteria: one function each, from the tensors of a group to one score a unit.

A criterion gets the slots of a group that are weights and returns float64 of shape (units,),
higher = keep. It sees the whole coupled unit: producer rows, norm weights, reader columns. One
that needs gradients says so when it is registered; then it is called once a batch, each slot with
the gradient of that batch's loss, and the score is the mean of what it returned.

    @criterion("l2")
    def l2(group: GroupWeights) -> NDArray[np.float64]: ...

    @criterion("taylor", gradients=True)
    def taylor(group: GroupWeights) -> NDArray[np.float64]: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.errors import InternalError, UsageError
from edgeprune.graph.groups import SlotTable
from edgeprune.scoring.sums import Elementwise, Sums


@dataclass(frozen=True, slots=True, eq=False)
class WeightedSlots:
    """One dim of one weight and where the group's units lie in it.

    Weights with `requires_grad=False` are weights like others.
    """

    table: SlotTable
    sums: Sums

    @property
    def weight(self) -> torch.Tensor:
        """The whole weight."""
        return self.sums.weight

    @property
    def gradient(self) -> torch.Tensor | None:
        """That of one batch's loss, of the weight's shape; None if it was not asked for."""
        return self.sums.gradient

    def total(self, function: Elementwise, *, gradient: bool = False) -> NDArray[np.float64]:
        """Sum of `function(weight)` over each unit's positions: float64 (units,).

        With `gradient` it is `function(weight, gradient)`. The function works element by element,
        in float64, on a part of the weight at a time.
        """
        if gradient and self.gradient is None:
            raise InternalError(
                f"score at {self.table.parameter}: expected a gradient, got none. Register the "
                "criterion with gradients=True."
            )
        mass = self.sums.along(self.table.dim, function, gradient=gradient)
        summed: NDArray[np.float64] = mass[self.table.positions].sum(axis=1)
        return summed


@dataclass(frozen=True, slots=True, eq=False)
class GroupWeights:
    """All weight slots of one group; `seed` for criteria that draw."""

    name: str
    width: int
    slots: tuple[WeightedSlots, ...]
    seed: int


Criterion: TypeAlias = Callable[[GroupWeights], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A criterion under its public name, and whether it needs the gradients of a loss."""

    name: str
    function: Criterion
    gradients: bool


_CRITERIA: dict[str, Registered] = {}


def criterion(name: str, *, gradients: bool = False) -> Callable[[Criterion], Criterion]:
    """Register a criterion under its public name: `@criterion("l2")`."""

    def register(function: Criterion) -> Criterion:
        if name in _CRITERIA:
            raise TypeError(f"criterion at {name!r}: expected a free name, got one in use.")
        _CRITERIA[name] = Registered(name, function, gradients)
        return function

    return register


def find_criterion(name: str) -> Registered:
    """The criterion of that name; `UsageError` lists the names there are."""
    if name not in _CRITERIA:
        raise UsageError(
            f"criterion at {name!r}: expected one of {', '.join(criterion_names())}, got "
            f"{name!r}. Choose one of these."
        )
    return _CRITERIA[name]


def criterion_names() -> tuple[str, ...]:
    """Public names, sorted."""
    return tuple(sorted(_CRITERIA))


@criterion("l1")
def l1(group: GroupWeights) -> NDArray[np.float64]:
    """Sum of absolute weights over the coupled unit (Li et al. 2017, arXiv 1608.08710)."""
    parts = (slot.total(torch.abs) for slot in group.slots)
    return sum(parts, np.zeros(group.width))


@criterion("l2")
def l2(group: GroupWeights) -> NDArray[np.float64]:
    """Euclidean norm over the coupled unit (group norm, Fang et al. 2023, arXiv 2301.12900)."""
    parts = (slot.total(torch.square) for slot in group.slots)
    return np.sqrt(sum(parts, np.zeros(group.width)))


@criterion("random")
def random(group: GroupWeights) -> NDArray[np.float64]:
    """Uniform in 0-1, reproducible by seed and group name: the baseline any criterion must beat."""
    entropy = [group.seed, *group.name.encode()]
    return np.random.default_rng(entropy).random(group.width)


@criterion("taylor", gradients=True)
def taylor(group: GroupWeights) -> NDArray[np.float64]:
    """(sum of gradient x weight over the coupled unit)², the first-order change of the loss.

    Molchanov et al. 2019 (arXiv 1906.10771), equation 8, with the unit's whole sum squared.
    """
    parts = (slot.total(torch.mul, gradient=True) for slot in group.slots)
    return np.square(sum(parts, np.zeros(group.width)))


def _squared(_: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return gradient.square()


@criterion("gradient", gradients=True)
def gradient(group: GroupWeights) -> NDArray[np.float64]:
    """Euclidean norm of the gradient over the coupled unit: how hard the loss pulls at it."""
    parts = (slot.total(_squared, gradient=True) for slot in group.slots)
    return np.sqrt(sum(parts, np.zeros(group.width)))
