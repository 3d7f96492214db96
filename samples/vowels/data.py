"""The committed JapaneseVowels arrays as edgeprune's splits.

Inputs are float32 (N, 12, 29): each cepstral coefficient less its mean, over its standard
deviation, both taken over the steps of the training utterances; steps beyond an utterance's end
are 0. Targets are int64 (N,), the speaker 0-8. The training split is shuffled and shifted in time
anew on each pass, with a little noise; the others are read in file order.

As with torch's DataLoader, a pass takes its seed from torch's global generator, which edgeprune
seeds before each training: the same recipe and seed see the same batches, another seed others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import edgeprune

HERE = Path(__file__).resolve().parent
NOISE = 0.15  # standard deviations of a coefficient
TRAINING_BATCH = 18
EVALUATION_BATCH = 90

Floats = npt.NDArray[np.float32]
Batch = tuple[Floats, npt.NDArray[np.int64]]


class Utterances(NamedTuple):
    """One split: series (N, 12, 29) as spoken, lengths (N,) in steps, speakers 0-8 (N,)."""

    series: Floats
    lengths: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    def inside(self) -> npt.NDArray[np.bool_]:
        """(N, 1, 29): whether a step lies before the utterance's end."""
        return (np.arange(self.series.shape[2]) < self.lengths[:, None])[:, None]


def read(name: str) -> Utterances:
    """The committed split train, validation or test."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return Utterances(arrays["series"], arrays["lengths"], arrays["labels"])


def statistics(training: Utterances) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each coefficient over all spoken steps, both (12, 1)."""
    spoken = training.series.transpose(0, 2, 1)[training.inside()[:, 0]]  # (steps, 12)
    return spoken.mean(0)[:, None], spoken.std(0)[:, None]


def normalise(utterances: Utterances, mean: Floats, deviation: Floats) -> Floats:
    """Series -> network input float32 (N, 12, 29)."""
    scaled = (utterances.series - mean) / deviation
    return np.where(utterances.inside(), scaled, np.float32(0))


class InOrder:
    """Batches of a split in file order; any number of passes."""

    def __init__(
        self, inputs: Floats, labels: npt.NDArray[np.uint8], *, batch_size: int = EVALUATION_BATCH
    ) -> None:
        """inputs float32 (N, 12, 29), labels (N,)."""
        self._inputs = inputs
        self._labels = labels.astype(np.int64)
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Number of batches in a pass; the last one may be smaller."""
        return -(-len(self._labels) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._labels), self._batch_size):
            chosen = slice(start, start + self._batch_size)
            yield self._inputs[chosen], self._labels[chosen]


class Augmented:
    """Batches in a new random order on each pass, each utterance shifted in time, with noise.

    An utterance is moved to the right by a random part of the room that it leaves, and each
    spoken value gets Gaussian noise. A remainder smaller than a batch is left out.
    """

    def __init__(
        self,
        inputs: Floats,
        lengths: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.uint8],
        *,
        batch_size: int = TRAINING_BATCH,
    ) -> None:
        """inputs float32 (N, 12, 29), zero from `lengths` (N,) on; labels (N,)."""
        self._inputs = inputs
        self._lengths = lengths.astype(np.int64)
        self._labels = labels.astype(np.int64)
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Number of batches in a pass."""
        return len(self._labels) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        order = rng.permutation(len(self._labels))
        for batch in range(len(self)):
            chosen = order[batch * self._batch_size :][: self._batch_size]
            yield self._varied(chosen, rng), self._labels[chosen]

    def _varied(self, chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> Floats:
        inputs, lengths = self._inputs[chosen], self._lengths[chosen]
        steps = np.arange(inputs.shape[2])
        inside = (steps < lengths[:, None])[:, None]
        noise = rng.standard_normal(inputs.shape, dtype=np.float32)
        inputs = inputs + np.float32(NOISE) * noise * inside
        shift = rng.integers(0, inputs.shape[2] - lengths + 1)
        source = (steps - shift[:, None]) % inputs.shape[2]  # what is pushed out is padding
        return np.take_along_axis(inputs, source[:, None], axis=2)


def load() -> edgeprune.Data:
    """Training, validation and test split; the training utterances as calibration."""
    training = read("train")
    scale = statistics(training)
    inputs = normalise(training, *scale)
    held_out, test = read("validation"), read("test")
    return edgeprune.Data(
        train=Augmented(inputs, training.lengths, training.labels),
        validation=InOrder(normalise(held_out, *scale), held_out.labels),
        test=InOrder(normalise(test, *scale), test.labels),
        calibration=InOrder(inputs, training.labels),
    )
