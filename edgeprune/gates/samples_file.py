"""Labelled or unlabelled samples in an `.npz`: one array an input by its name, and `target`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.errors import DataError
from edgeprune.recipe.data import Array

TARGET = "target"
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleFile:
    """Arrays by input name, the sample as first axis of each; `target` None without labels."""

    path: Path
    inputs: Mapping[str, Array]
    target: Array | None

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(next(iter(self.inputs.values())))

    def batches(self, fixed: int | None) -> Iterator[tuple[dict[str, Array], Array | None]]:
        """(inputs by name, target) in order; of `fixed` samples where a model fixes its batch.

        Raises DataError where the samples cannot be divided into whole batches.
        """
        size = fixed or _BATCH
        if fixed is not None and self.samples % fixed:
            raise DataError(
                f"reading samples at {self.path}: expected a multiple of {fixed}, the batch that "
                f"the model fixes, got {self.samples} samples. Add or remove some.",
                where=str(self.path),
            )
        for start in range(0, self.samples, size):
            part = slice(start, start + size)
            target = None if self.target is None else self.target[part]
            yield {name: array[part] for name, array in self.inputs.items()}, target


def read_samples(path: Path) -> SampleFile:
    """Read and check a file of samples; nothing in it is unpickled.

    Raises DataError for a file that is not `.npz`, has no input or no sample, arrays of different
    lengths, objects, NaN or infinity.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # a damaged zip raises zipfile's, zlib's or NumPy's errors
        got = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise _fault(path, "an .npz file of plain arrays", str(got)) from error
    target = arrays.pop(TARGET, None)
    if not arrays:
        raise _fault(path, "an array for each input, by its name", f"only {TARGET!r}")
    named = arrays if target is None else {**arrays, TARGET: target}
    lengths = {name: len(array) if array.ndim else 0 for name, array in named.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        got = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise _fault(path, "as many samples in every array, at least one", got)
    for name, array in named.items():
        if array.dtype.kind not in "fciub":
            raise _fault(path, f"numbers in {name!r}", f"dtype {array.dtype}")
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise _fault(path, f"finite numbers in {name!r}", f"{count} NaN or infinite")
    return SampleFile(path=path, inputs=arrays, target=target)


def _fault(path: Path, expected: str, got: str) -> DataError:
    return DataError(
        f"reading samples at {path}: expected {expected}, got {got}. Write it with numpy.savez: "
        f"inputs by name, and {TARGET!r}.",
        where=str(path),
    )
