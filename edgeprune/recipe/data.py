"""The user's data: splits, metric and loss, checked before anything is built on them.

No torch: arrays and tensors are read alike. What runs a model over a split is in `evaluate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt

from edgeprune.errors import DataError, EdgepruneError, UserCodeError
from edgeprune.recipe.factory import call_user, load_factory, parse_factory, user_error

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

Array: TypeAlias = npt.NDArray[np.generic]
Batch: TypeAlias = tuple[object, object]
Split: TypeAlias = Iterable[Batch]
Outputs: TypeAlias = "Array | tuple[Array, ...]"
Metric: TypeAlias = Callable[[Outputs, Array], float]
Loss: TypeAlias = "Callable[[object, object], torch.Tensor]"

_LABELLED = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Re-iterable splits of (inputs, target) batches, batch first, and how to judge outputs.

    inputs: an array, tensor, tuple (positional) or dict (by keyword). target: an array, a tensor,
    or None where there are no labels. calibration: inputs for repair; the training split if None.
    metric(outputs, targets) -> float, on NumPy arrays of the whole split, higher is better;
    accuracy if None. loss(outputs, target) -> scalar tensor; cross-entropy if None.
    """

    train: Split
    validation: Split
    test: Split
    calibration: Split | None = None
    metric: Metric | None = None
    loss: Loss | None = None

    def splits(self) -> Iterator[tuple[str, Split]]:
        """Name and batches of each split that is there."""
        for field in fields(self):
            if field.name in (*_LABELLED, "calibration"):
                split: Split | None = getattr(self, field.name)
                if split is not None:
                    yield field.name, split


def load_data(spec: str, base_dir: Path | None = None) -> Data:
    """Call the user's data factory and check the first batch of every split.

    Raises DataError for what is not Data or does not hold together, UserCodeError when the
    factory or an iteration raises. The test split is only asked for its first batch's shape.
    """
    function = load_factory(parse_factory(spec), base_dir or Path.cwd())
    data = call_user(function, "making the data", spec)
    if not isinstance(data, Data):
        raise DataError(
            f"making the data at {spec}: expected edgeprune.Data, got {type(data).__name__}. "
            f"Return edgeprune.Data(train=..., validation=..., test=...).",
            where=spec,
        )
    check_data(data)
    return data


def check_data(data: Data) -> None:
    """Check each split: re-iterable, pairs, equal lengths, finite; the same shapes in all.

    Of the test split only that it can be read: its batches are looked at once, at the end.
    """
    shapes: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {}
    for name in _LABELLED:
        if getattr(data, name) is None:
            raise _fault(name, "batches of (inputs, target)", "None", "Give Data this split.")
    for name, split in data.splits():
        _check_iterable(name, split)
        if name != "test":
            shapes[name] = _check_first_batch(name, split)
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise _fault(
                name,
                f"inputs of {_spelled(shapes[first])} as in {first}",
                _spelled(shape),
                "Give every split the same inputs.",
            )


def to_numpy(value: object) -> Array:
    """An array, tensor or list as a NumPy array; a tensor is taken off its graph and device."""
    for step in ("detach", "cpu"):
        move = getattr(value, step, None)
        if callable(move):
            value = move()
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise _not_an_array(value, str(error)) from error
    if array.dtype.kind in "OUS":
        raise _not_an_array(value, f"dtype {array.dtype}")
    return array


def _not_an_array(value: object, got: str) -> DataError:
    return DataError(
        f"reading a batch at a {type(value).__name__}: expected an array or tensor of numbers, got "
        f"{got}. Yield (inputs, target) of arrays."
    )


def named_inputs(inputs: object) -> dict[str, Array]:
    """The arrays of one batch's inputs by name; positions are `0`, `1` ..."""
    if isinstance(inputs, Mapping):
        return {str(name): to_numpy(value) for name, value in inputs.items()}
    if is_several(inputs):
        return {str(index): to_numpy(value) for index, value in enumerate(inputs)}
    return {"0": to_numpy(inputs)}


def is_several(inputs: object) -> TypeGuard[Sequence[object]]:
    """A tuple is several inputs; a list only when it holds arrays (a loader's collated tuple)."""
    if isinstance(inputs, tuple):
        return True
    return isinstance(inputs, list) and bool(inputs) and hasattr(inputs[0], "shape")


def _check_iterable(name: str, split: Split) -> None:
    if not isinstance(split, Iterable):
        raise _fault(name, "an iterable of batches", type(split).__name__, "Give a list or loader.")
    if _told_length(split) == 0:  # without reading, of the test split too
        raise _fault(name, "at least one batch", "none", "Check the factory's filters and paths.")
    if isinstance(split, Iterator):
        raise _fault(
            name,
            "batches that can be read again and again",
            f"a one-shot {type(split).__name__}",
            "Give a list, a DataLoader, or an object whose __iter__ starts over.",
        )


def _told_length(split: Split) -> int | None:
    try:
        return len(split) if isinstance(split, Sized) else None
    except TypeError:  # a DataLoader of an IterableDataset has a __len__ that does not know
        return None


def batches_of(split: Iterable[T]) -> Iterator[T]:
    """One pass over a split; what the user's iteration raises becomes a UserCodeError."""
    index = 0
    try:
        batches = iter(split)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch
            index += 1
    except EdgepruneError:
        raise
    except Exception as error:
        raise user_error(error, "reading a split", f"batch {index} of the split") from error


def _check_first_batch(name: str, split: Split) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes (without the batch) of the first batch's inputs."""
    try:
        first = next(itertools.islice(split, 1), None)
    except Exception as error:
        raise user_error(error, f"reading the {name} split", f"the {name} split") from error
    if first is None:
        raise _fault(name, "at least one batch", "none", "Check the factory's filters and paths.")
    return _check_batch(name, first)


def _check_batch(name: str, batch: object) -> tuple[tuple[str, tuple[int, ...]], ...]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise _fault(
            name,
            "pairs (inputs, target)",
            _described(batch),
            "Yield (inputs, None) where there are no labels.",
        )
    arrays = named_inputs(batch[0])
    sizes: dict[str, int] = {}
    for key, array in arrays.items():
        where = "inputs" if key == "0" and len(arrays) == 1 else f"input {key}"
        _check_values(name, where, array)
        sizes[where] = array.shape[0]
    if isinstance(batch[1], Mapping) or is_several(batch[1]):
        raise _fault(
            name,
            "one array or tensor as target",
            _described(batch[1]),
            "Stack the targets into one, which your metric and loss take apart.",
        )
    if batch[1] is not None:
        target = to_numpy(batch[1])
        _check_values(name, "target", target)
        sizes["target"] = target.shape[0]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{where} {size}" for where, size in sizes.items())
        raise _fault(name, "inputs and target of one length", listed, "Slice them alike.")
    return tuple((key, array.shape[1:]) for key, array in arrays.items())


def _check_values(name: str, where: str, array: Array) -> None:
    if array.dtype == object or array.dtype.kind in "US":
        raise _fault(
            name, f"numbers in {where}", f"dtype {array.dtype}", "Yield arrays of numbers."
        )
    if array.ndim == 0 or array.shape[0] == 0:
        raise _fault(
            name, f"the batch as first dim of {where}", f"shape {array.shape}", "Add a batch dim."
        )
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise _fault(
            name,
            f"finite numbers in {where}",
            f"{count} of {array.size} NaN or infinite",
            "Clean or mask these samples.",
        )


def check_labels(name: str, target: Array, classes: int) -> None:
    """Check that labels are whole numbers in 0 ... classes - 1; DataError names the offender.

    A float that is whole (1.0) is a label; a fraction, NaN or a complex number is none.
    """
    whole = "whole numbers as labels"
    if target.dtype.kind not in "iubf":
        got = f"{target.ravel()[0]} ({target.dtype})"
        raise _fault(name, whole, got, "Give each sample the number of its class.")
    if target.dtype.kind == "f":
        odd = target[~np.isfinite(target) | (target != np.floor(target))]
        if odd.size:
            got = f"{odd.size} of {target.size} that are none, such as {odd[0]}"
            raise _fault(name, whole, got, "Give each sample the number of its class.")
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        raise _fault(
            name,
            f"labels from 0 to {classes - 1}, as the model gives {classes} classes",
            f"labels from {low} to {high}",
            "Remap the labels, or give Data a metric of your own.",
        )


def accuracy(outputs: Outputs, targets: Array) -> float:
    """Share (0-1) of samples whose largest score, over the last axis, is at the target's index.

    outputs (N, C) float, targets (N,) integer. Raises DataError for other shapes.
    """
    if isinstance(outputs, tuple):
        outputs = outputs[0]
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        raise DataError(
            f"computing the accuracy at the model's first output: expected scores (N, C) and "
            f"labels (N,), got {outputs.shape} and {targets.shape}. Give Data(metric=...).",
            where="metric",
        )
    check_labels("evaluated", targets, outputs.shape[1])
    return float(np.mean(outputs.argmax(axis=1) == targets))


def apply_metric(
    metric: Metric | None, outputs: Outputs, targets: Array, *, finite: bool = True
) -> float:
    """The metric's value; what the user's metric raises becomes a UserCodeError.

    finite: refuse NaN and infinity likewise.
    """
    if metric is None:
        return accuracy(outputs, targets)
    name = getattr(metric, "__name__", type(metric).__name__)
    value = call_user(lambda: float(metric(outputs, targets)), "computing the metric", name)
    if not isinstance(value, float) or (finite and not np.isfinite(value)):
        raise UserCodeError(
            f"computing the metric at {name}: expected a finite number, got {value}. "
            f"Return a float, higher is better.",
            where=name,
        )
    return value


def _fault(split: str, expected: str, got: str, advice: str) -> DataError:
    return DataError(
        f"reading the data at the {split} split: expected {expected}, got {got}. {advice}",
        where=split,
    )


def _described(value: object) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}"


def _spelled(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    return ", ".join(f"{name}: {('B', *shape)}" for name, shape in shapes).replace("'", "")
