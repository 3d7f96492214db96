"""Run a model over a split: outputs, targets and the metric of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.errors import DataError, UsageError
from edgeprune.recipe.data import (
    Array,
    Metric,
    Outputs,
    Split,
    apply_metric,
    batches_of,
    is_several,
    to_numpy,
)


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


def evaluate(
    model: nn.Module, split: Split, metric: Metric | None = None, *, usable: str | None = None
) -> Evaluation:
    """Outputs of `model` over every batch of `split`, in eval mode, without gradients.

    metric: accuracy if None. usable: the split's name; then outputs that nothing can be judged by
    are refused, see `require_usable`, and so is a metric that is not finite. The model's mode is
    put back afterwards.
    Raises DataError for an empty split, inputs that the model does not take, or labels that come
    and go; UserCodeError from the metric.
    """
    outputs: list[tuple[Array, ...]] = []
    targets: list[Array] = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for index, (inputs, target) in enumerate(batches_of(split)):
                outputs.append(_arrays(_answer(model, inputs, index)))
                if target is not None:
                    targets.append(to_numpy(target))
    finally:
        model.train(was_training)
    where = "a split" if usable is None else f"the {usable} split"
    if not outputs:
        raise DataError(
            f"evaluating at {where}: expected at least one batch on every pass, got none. Give "
            f"Data a split that can be read again.",
            where=usable,
        )
    if len(targets) not in (0, len(outputs)):
        raise DataError(
            f"evaluating at {where}: expected batches that all or none have a target, got "
            f"{len(outputs)} batches and {len(targets)} targets. Label every sample or none."
        )
    joined = tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))
    whole: Outputs = joined[0] if len(joined) == 1 else joined
    if usable is not None:
        require_usable(whole, usable)
    labels = np.concatenate(targets) if targets else None
    value = (
        None if labels is None else apply_metric(metric, whole, labels, finite=usable is not None)
    )
    return Evaluation(outputs=whole, targets=labels, value=value)


def require_usable(outputs: Outputs, split: str) -> None:
    """Check that outputs are numbers and depend on the input: nothing can be judged otherwise.

    Raises UsageError for NaN, and where every sample of a split of two or more gets one answer.
    """
    arrays = outputs if isinstance(outputs, tuple) else (outputs,)
    floats = [array for array in arrays if array.dtype.kind == "f"]
    spoilt = sum(int(np.isnan(array).reshape(len(array), -1).any(1).sum()) for array in floats)
    if spoilt:
        raise UsageError(
            f"running the model at the {split} split: expected numbers, got NaN for {spoilt} "
            f"samples. Check the weights, and the range of the inputs.",
            where=split,
        )
    if len(arrays[0]) > 1 and all((array == array[:1]).all() for array in arrays):
        raise UsageError(
            f"running the model at the {split} split: expected an output that depends on the "
            f"input, got the same for all {len(arrays[0])} samples. Check that trained weights "
            f"are loaded.",
            where=split,
        )


def _answer(model: nn.Module, inputs: object, index: int) -> object:
    """The model's output for one batch; what goes wrong is said with the shapes of the batch."""
    args, kwargs = to_inputs(inputs)
    named = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    for name, value in named.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(
                f"evaluating at batch {index}: expected finite numbers in input {name}, got NaN or "
                f"infinite. Clean or mask these samples."
            )
    try:
        return model(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(
            f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            for name, value in named.items()
        )
        raise DataError(
            f"evaluating at batch {index}: expected inputs that the model takes, got {shapes} "
            f"({type(error).__name__}: {error}). Make them like the model's example."
        ) from error


def _arrays(output: object) -> tuple[Array, ...]:
    """The tensors of a nested output in a fixed order, as arrays."""
    leaves = pytree.tree_leaves(output)
    return tuple(to_numpy(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
