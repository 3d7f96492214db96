"""Criteria: one function each, from the tensors of a group to one score a unit.

A criterion gets the slots of a group that are trainable weights and returns float64 of shape
(units,), higher = keep. It sees the whole coupled unit: producer rows, norm weights, reader
columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.errors import UsageError
from edgeprune.graph.groups import SlotTable


@dataclass(frozen=True, slots=True, eq=False)
class WeightedSlots:
    """One dim of one trainable tensor and where the group's units lie in it."""

    table: SlotTable
    weight: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class GroupWeights:
    """All trainable slots of one group; `seed` for criteria that draw."""

    name: str
    width: int
    slots: tuple[WeightedSlots, ...]
    seed: int


Criterion: TypeAlias = Callable[[GroupWeights], NDArray[np.float64]]

_CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion under its public name: `@criterion("l2")`."""

    def register(function: Criterion) -> Criterion:
        if name in _CRITERIA:
            raise TypeError(f"criterion at {name!r}: expected a free name, got one in use.")
        _CRITERIA[name] = function
        return function

    return register


def find_criterion(name: str) -> Criterion:
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


def _per_unit(slot: WeightedSlots, power: int) -> NDArray[np.float64]:
    """Sum of |w|^power over each unit's positions and all other dims, float64 (units,)."""
    weight = slot.weight.detach().double().abs()
    others = [dim for dim in range(weight.dim()) if dim != slot.table.dim]
    mass = weight.pow(power).sum(dim=others) if others else weight.pow(power)
    summed: NDArray[np.float64] = mass.cpu().numpy()[slot.table.positions].sum(axis=1)
    return summed


@criterion("l1")
def l1(group: GroupWeights) -> NDArray[np.float64]:
    """Sum of absolute weights over the coupled unit (Li et al. 2017, arXiv 1608.08710)."""
    return sum((_per_unit(slot, 1) for slot in group.slots), np.zeros(group.width))


@criterion("l2")
def l2(group: GroupWeights) -> NDArray[np.float64]:
    """Euclidean norm over the coupled unit (group norm, Fang et al. 2023, arXiv 2301.12900)."""
    return np.sqrt(sum((_per_unit(slot, 2) for slot in group.slots), np.zeros(group.width)))


@criterion("random")
def random(group: GroupWeights) -> NDArray[np.float64]:
    """Uniform in 0-1, reproducible by seed and group name: the baseline any criterion must beat."""
    entropy = [group.seed, *group.name.encode()]
    return np.random.default_rng(entropy).random(group.width)
