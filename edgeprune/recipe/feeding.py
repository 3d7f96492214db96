"""Batches of a split as tensors on a model's device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from edgeprune.errors import DataError
from edgeprune.recipe.data import Batch, Split, batches_of, is_several, named_inputs
from edgeprune.recipe.evaluate import to_inputs, to_tensor
from edgeprune.recipe.factory import call_user


def device_of(module: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU when there is none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def call_arguments(
    inputs: object, device: torch.device
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Positional and keyword tensors of one call, on `device`; dtypes are kept.

    Raises DataError for NaN and infinities: they would look like training that diverged.
    """
    args, kwargs = to_inputs(inputs)
    for tensor in (*args, *kwargs.values()):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int(tensor.numel() - tensor.isfinite().sum())
            raise DataError(
                f"reading a batch at its inputs: expected finite numbers, got {count} of "
                f"{tensor.numel()} NaN or infinite. Clean or mask these samples."
            )
    return tuple(x.to(device) for x in args), {name: x.to(device) for name, x in kwargs.items()}


def move_target(target: object, device: torch.device) -> object:
    """The target on `device`, its nesting of tuples and dicts kept; None stays None."""
    if target is None:
        return None
    if isinstance(target, Mapping):
        return {name: move_target(value, device) for name, value in target.items()}
    if is_several(target):
        return tuple(move_target(value, device) for value in target)
    return to_tensor(target).to(device)


def batch_size(inputs: object) -> int:
    """Samples in a batch: the first dim of its first input, (B, ...)."""
    first = next(iter(named_inputs(inputs).values()), None)
    if first is None or first.ndim == 0:
        raise DataError(
            "reading a batch at its first input: expected an array with the batch as first "
            f"dim, got {type(inputs).__name__} without one. Yield (inputs, target) of arrays."
        )
    return int(first.shape[0])


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Let a DataError about a batch say which: `place` is `the train split, batch 3`."""
    try:
        yield
    except DataError as error:
        words = str(error).removeprefix("reading a batch at ")
        raise DataError(f"reading {place}, at {words}", where=place) from error


def first_batch(name: str, split: Split) -> Batch:
    """The first batch of a new pass over the split of that name.

    Raises DataError where the pass yields nothing, UserCodeError where it raises.
    """
    where = f"the {name} split"
    batch = call_user(lambda: next(iter(split), None), f"reading {where}", where)
    if batch is None:
        raise DataError(
            f"reading the data at {where}: expected at least one batch on every pass, got none on "
            f"a later one. Give Data a split that can be read again.",
            where=name,
        )
    return next(pairs([batch]))


def pairs(batches: Iterable[object]) -> Iterator[Batch]:
    """The batches of one pass, each checked to be a pair `(inputs, target)`."""
    for index, batch in enumerate(batches_of(batches)):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DataError(
                f"reading a split at batch {index}: expected a pair (inputs, target), got "
                f"{type(batch).__name__}. Yield (inputs, None) when there are no labels."
            )
        yield batch[0], batch[1]
