"""Run an ONNX file over a split and keep its outputs: batches in, whole-split arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgeprune.errors import DataError, OutputsNotFinite
from edgeprune.measure.session import input_dtype, one_line, open_session
from edgeprune.recipe.data import Array, Outputs, Split, batches_of, is_several, to_numpy
from edgeprune.targets import available_cores


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """Outputs of a whole split (N, ...), as a metric takes them: a tuple if there are several.

    `names` are the model's outputs in order; `targets` is None if the split has no labels.
    """

    names: tuple[str, ...]
    outputs: Outputs
    targets: Array | None
    samples: int


def predict(
    model: Path,
    split: Split,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Run `model` over batches of (inputs, target); threads default to every core.

    Inputs are an array or tensor (one input), a tuple or list (in the model's order) or a dict
    by input name; targets are arrays, tensors or None. Batches may differ in size: the model's
    batch axis must be dynamic. `progress(samples done)` is called after every batch. The threads
    do not touch what is measured elsewhere: this is for outputs, not for times.

    Raises UsageError if ONNX Runtime refuses the file, DataError if a batch does not fit it,
    the split is empty, or only some batches have targets, OutputsNotFinite for NaN in the outputs.
    """
    session = open_session(model, threads=threads or available_cores())
    names = tuple(node.name for node in session.get_outputs())
    kept: list[list[Array]] = [[] for _ in names]
    targets: list[Array | None] = []
    samples = 0
    for index, (inputs, target) in enumerate(batches_of(split)):
        where = f"batch {index}"
        feeds = _by_name(session, inputs, where)
        size = _batch_size(feeds, where)
        outputs = run_once(session, feeds, where=where)
        for pile, (name, array) in zip(kept, outputs.items(), strict=True):
            _require_batch_first(array, size, f"{where}, output '{name}'")
            _require_numbers(array, model, f"{where}, output '{name}'")
            pile.append(array)
        targets.append(None if target is None else to_numpy(target))
        samples += size
        if progress is not None:
            progress(samples)
    if samples == 0:
        raise DataError(
            "running the model at the split: expected at least one batch, got none. Make the "
            "split re-iterable: a generator is empty the second time.",
            where="split",
        )
    joined = tuple(np.concatenate(pile) for pile in kept)
    return Predictions(
        names=names,
        outputs=joined[0] if len(joined) == 1 else joined,
        targets=_joined(targets, samples),
        samples=samples,
    )


def run_once(
    session: ort.InferenceSession, feeds: Mapping[str, Array], *, where: str
) -> dict[str, Array]:
    """One inference: arrays by output name. Raises DataError if the inputs do not fit."""
    names = [node.name for node in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
        shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in feeds.items())
        raise DataError(
            f"running the model at {where}: expected inputs that fit its shapes, got {shapes}: "
            f"{one_line(error)}. Export with a dynamic batch and check the data.",
            where=where,
        ) from error


def _by_name(session: ort.InferenceSession, inputs: object, where: str) -> dict[str, Array]:
    nodes = session.get_inputs()
    names = [node.name for node in nodes]
    given: dict[str, object]
    if isinstance(inputs, Mapping):
        given = {str(name): value for name, value in inputs.items()}
    else:
        values: Sequence[object] = inputs if is_several(inputs) else (inputs,)
        given = dict(zip(names, values, strict=False)) if len(values) <= len(names) else {}
    if sorted(given) != sorted(names):
        raise DataError(
            f"feeding the model at {where}: expected inputs {', '.join(names)}, got "
            f"{', '.join(sorted(given)) or 'another number of them'}. Return inputs in that order, "
            "or a dict by name.",
            where=where,
        )
    feeds = {}
    for node in nodes:
        place = f"{where}, input '{node.name}'"
        dtype = input_dtype(node.type, f"input '{node.name}'")
        feeds[node.name] = _fitted(to_numpy(given[node.name]), dtype, place)
        _require_finite(feeds[node.name], place)
    return feeds


def _fitted(array: Array, dtype: np.dtype[np.generic], where: str) -> Array:
    """The array in the model's precision; a change of kind or a value out of range is refused."""
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise DataError(
            f"feeding the model at {where}: expected {dtype}, got {array.dtype}. Convert it in "
            "the data factory.",
            where=where,
        )
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    with np.errstate(all="ignore"):  # what overflows is refused below, not warned of
        fitted = np.ascontiguousarray(array, dtype=dtype)
    outside = _outside(array, fitted)
    if outside.any():
        lowest, highest = _range(dtype)
        raise DataError(
            f"feeding the model at {where}: expected values of {dtype}, from {lowest} to "
            f"{highest}, got {array[outside][0]} ({int(outside.sum())} of {array.size} lie "
            f"outside). Scale the data, or export the model with a wider input.",
            where=where,
        )
    return fitted


def _outside(array: Array, fitted: Array) -> npt.NDArray[np.bool_]:
    """Where a cast went beyond the range: integers wrap, floats become infinite."""
    if fitted.dtype.kind == "f":
        return np.isinf(fitted) & np.isfinite(array)
    return np.asarray(fitted != array)


def _range(dtype: np.dtype[np.generic]) -> tuple[str, str]:
    """The least and the greatest value that a dtype holds."""
    if dtype.kind == "f":
        floats = np.finfo(dtype.name)
        return str(floats.min), str(floats.max)
    integers = np.iinfo(dtype.name)
    return str(integers.min), str(integers.max)


def _batch_size(feeds: Mapping[str, Array], where: str) -> int:
    name, first = next(iter(feeds.items()))
    if first.ndim == 0 or len(first) == 0:
        raise DataError(
            f"feeding the model at {where}, input '{name}': expected a batch of at least one "
            f"sample, got shape {first.shape}. Put the batch axis first.",
            where=where,
        )
    return len(first)


def _require_finite(array: Array, where: str) -> None:
    """Refuse samples that are not numbers: the largest of NaN scores is the first class."""
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise DataError(
            f"feeding the model at {where}: expected finite numbers, got {count} of {array.size} "
            f"NaN or infinite. Clean or mask these samples.",
            where=where,
        )


def _require_numbers(array: Array, model: Path, where: str) -> None:
    """Refuse an answer of NaN or overflow to finite samples; -inf may mask a class, and is one."""
    if array.dtype.kind != "f":
        return
    floats = array.astype(np.float64)
    count = int((np.isnan(floats) | np.isposinf(floats)).sum())
    if count:
        raise OutputsNotFinite(
            f"running the model {model.name} at {where}: expected finite numbers, got {count} NaN "
            f"or infinite for inputs that are finite. Do not ship this file.",
            where=str(model),
        )


def _require_batch_first(array: Array, size: int, where: str) -> None:
    if array.ndim == 0 or len(array) != size:
        raise DataError(
            f"reading the model's output at {where}: expected {size} rows, one a sample, got "
            f"shape {array.shape}. Export a model whose outputs have the batch axis first.",
            where=where,
        )


def _joined(targets: list[Array | None], samples: int) -> Array | None:
    arrays = [target for target in targets if target is not None]
    if not arrays:
        return None
    if len(arrays) != len(targets):
        raise DataError(
            f"reading data at target: expected targets in all {len(targets)} batches or in none, "
            f"got {len(arrays)}. Label the whole split.",
            where="target",
        )
    joined = np.concatenate(arrays)
    if len(joined) != samples:
        raise DataError(
            f"reading data at target: expected {samples} targets, one a sample, got "
            f"{len(joined)}. Check the data factory.",
            where="target",
        )
    return joined
