"""Run a model over a split: outputs, targets and the metric of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.errors import DataError
from edgeprune.recipe.data import Array, Metric, Outputs, Split, apply_metric, is_several, to_numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model gave on a split: outputs and targets (N, ...), the metric's value.

    outputs is a tuple of arrays for a model with several; targets and value are None where the
    split has no labels.
    """

    outputs: Outputs
    targets: Array | None
    value: float | None


def to_inputs(inputs: object) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Positional and keyword tensors of one call.

    An array or tensor (B, ...) -> one argument; a tuple -> several; a dict -> by keyword.
    """
    if isinstance(inputs, Mapping):
        return (), {str(name): to_tensor(value) for name, value in inputs.items()}
    if is_several(inputs):
        return tuple(to_tensor(value) for value in inputs), {}
    return (to_tensor(inputs),), {}


def to_tensor(value: object) -> torch.Tensor:
    """A tensor as it is, or a writable copy of an array; the dtype is kept."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.from_numpy(np.array(to_numpy(value)))


def evaluate(model: nn.Module, split: Split, metric: Metric | None = None) -> Evaluation:
    """Outputs of `model` over every batch of `split`, in eval mode, without gradients.

    metric: accuracy if None. The model's mode is put back afterwards.
    Raises DataError for an empty split or labels that come and go, UserCodeError from the metric.
    """
    outputs: list[tuple[Array, ...]] = []
    targets: list[Array] = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for inputs, target in split:
                args, kwargs = to_inputs(inputs)
                outputs.append(_arrays(model(*args, **kwargs)))
                if target is not None:
                    targets.append(to_numpy(target))
    finally:
        model.train(was_training)
    if not outputs or len(targets) not in (0, len(outputs)):
        raise DataError(
            f"evaluating at a split: expected batches that all or none have a target, got "
            f"{len(outputs)} batches and {len(targets)} targets. Label every sample or none."
        )
    joined = tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))
    whole: Outputs = joined[0] if len(joined) == 1 else joined
    labels = np.concatenate(targets) if targets else None
    value = None if labels is None else apply_metric(metric, whole, labels)
    return Evaluation(outputs=whole, targets=labels, value=value)


def _arrays(output: object) -> tuple[Array, ...]:
    """The tensors of a nested output in a fixed order, as arrays."""
    leaves = pytree.tree_leaves(output)
    return tuple(to_numpy(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
