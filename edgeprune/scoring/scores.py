"""Score: what every unit of every group is worth, by one criterion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.errors import DataError, InternalError, UsageError, require_a
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.groups import Group
from edgeprune.graph.module import attribute
from edgeprune.recipe.data import Batch, Loss
from edgeprune.scoring.criteria import GroupWeights, Registered, WeightedSlots, find_criterion
from edgeprune.scoring.gradients import gradients_of
from edgeprune.scoring.sums import Sums


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """`values` maps a group's name to float64 of shape (units,), higher = keep."""

    criterion: str
    values: Mapping[str, NDArray[np.float64]]


def score(
    analysis: Analysis,
    criterion: str = "l2",
    batches: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    *,
    seed: int = 0,
) -> Scores:
    """Score every unit of `analysis`.

    A criterion of gradients (`taylor`, `gradient`) reads all of `batches`, pairs (inputs, target),
    and gives means over them; `loss(outputs, target)` is a scalar tensor, cross-entropy if None.
    Other criteria do not touch `batches`. The analysed model is left as it is; its weights with
    `requires_grad=False` count like others.
    Raises `UsageError` for an unknown criterion or weights that are not finite, `DataError` where
    gradients are needed and there are no labelled batches, or the loss or its gradient is not
    finite, `InternalError` for a score that is not finite all the same.
    """
    require_a(Analysis, analysis, "score at analysis", "Write score(analyze(model, (x,))).")
    chosen = find_criterion(criterion)
    groups = analysis.groups
    tensors = _weights(analysis, groups)
    if not chosen.gradients:
        weights = _slots(groups, tensors)
        bare = [_Sum(_called(chosen, group, weights[group.name], seed)) for group in groups]
        return _scores(analysis, chosen, bare)
    if batches is None:
        raise DataError(
            f"scoring by {criterion!r}: expected labelled batches, as it needs the loss's "
            "gradient, got none. Give batches=, or choose a criterion of the weights alone (l2)."
        )
    sums = [_Sum(np.zeros(group.width), 0) for group in groups]
    module = analysis.captured.module
    for found in gradients_of(module, tuple(tensors), batches, loss):
        weights = _slots(groups, tensors, found)
        for total, group in zip(sums, groups, strict=True):
            total.add(_called(chosen, group, weights[group.name], seed))
    if sums and sums[0].count == 0:
        raise DataError(
            f"scoring by {criterion!r}: expected at least one batch of (inputs, target), got "
            "none. Give batches that can be read."
        )
    return _scores(analysis, chosen, sums)


def _slots(
    groups: tuple[Group, ...],
    tensors: Mapping[str, torch.Tensor],
    gradients: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, tuple[WeightedSlots, ...]]:
    """The weights of each group by its name; groups that share a weight share what is summed."""
    dims: dict[str, dict[int, None]] = {name: {} for name in tensors}
    for group in groups:
        for table in group.tables:
            dims.get(table.parameter, {})[table.dim] = None
    sums = {
        name: Sums(tensor, tuple(dims[name]), gradients[name] if gradients else None)
        for name, tensor in tensors.items()
    }
    return {
        group.name: tuple(
            WeightedSlots(table, sums[table.parameter])
            for table in group.tables
            if table.parameter in sums
        )
        for group in groups
    }


@dataclass(slots=True)
class _Sum:
    """A group's scores added up over batches."""

    values: NDArray[np.float64]
    count: int = 1

    def add(self, values: NDArray[np.float64]) -> None:
        self.values = self.values + values
        self.count += 1


def _called(
    chosen: Registered, group: Group, slots: tuple[WeightedSlots, ...], seed: int
) -> NDArray[np.float64]:
    """One call of the criterion; what it returns must be one finite number a unit."""
    result = chosen.function(GroupWeights(group.name, group.width, slots, seed))
    if result.shape != (group.width,) or not np.isfinite(result).all():
        raise InternalError(
            f"score at {group.name}: expected {group.width} finite numbers from criterion "
            f"{chosen.name!r}, got shape {result.shape}, finite: {np.isfinite(result).all()}. "
            "Weights and gradients are finite: look in the criterion.",
            where=group.name,
        )
    return result


def _scores(analysis: Analysis, chosen: Registered, sums: list[_Sum]) -> Scores:
    groups = analysis.groups
    values = {
        group.name: total.values / total.count for group, total in zip(groups, sums, strict=True)
    }
    return Scores(chosen.name, values)


def _weights(analysis: Analysis, groups: tuple[Group, ...]) -> dict[str, torch.Tensor]:
    """The parameters that groups have slots in; buffers (statistics) are not weights."""
    names = dict.fromkeys(table.parameter for group in groups for table in group.tables)
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        tensor = attribute(analysis.captured.module, name)
        if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            # A finite sum has finite terms; one that overflows asks for a look at each of them.
            if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
                raise UsageError(
                    f"scoring at {name}: expected finite weights, got NaN or infinity. "
                    f"Load weights from before training diverged.",
                    where=name,
                )
            tensors[name] = tensor
    return tensors
