"""Score: what every unit of every group is worth, by one criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.errors import InternalError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.groups import Group
from edgeprune.graph.module import attribute
from edgeprune.scoring.criteria import GroupWeights, WeightedSlots, find_criterion


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """`values` maps a group's name to float64 of shape (units,), higher = keep."""

    criterion: str
    values: Mapping[str, NDArray[np.float64]]


def score(analysis: Analysis, criterion: str = "l2", *, seed: int = 0) -> Scores:
    """Score every unit of `analysis`.

    Raises `UsageError` for an unknown criterion, `InternalError` for a score that is not finite.
    """
    function = find_criterion(criterion)
    values = {}
    for group in analysis.groups:
        result = function(_weights(analysis, group, seed))
        if result.shape != (group.width,) or not np.isfinite(result).all():
            raise InternalError(
                f"score at {group.name}: expected {group.width} finite numbers from criterion "
                f"{criterion!r}, got shape {result.shape}, finite: {np.isfinite(result).all()}. "
                "Look for NaN or infinity in the weights.",
                where=group.name,
            )
        values[group.name] = result
    return Scores(criterion, values)


def _weights(analysis: Analysis, group: Group, seed: int) -> GroupWeights:
    slots = []
    for table in group.tables:
        tensor = attribute(analysis.captured.module, table.parameter)
        if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            slots.append(WeightedSlots(table, tensor))
    return GroupWeights(group.name, group.width, tuple(slots), seed)
