"""The committed digits as edgeprune's splits.

Inputs are float32 (N, 1, 8, 8): `(pixel - 4.9) / 6.0`, the mean and the standard deviation of the
training images, whose pixels are 0-16. Targets are int64 (N,), the digit. The training split is
shuffled and shifted anew on each pass; the others are read in file order.

As with torch's DataLoader, a pass takes its seed from torch's global generator, which edgeprune
seeds before each training: the same recipe and seed see the same batches, another seed others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import edgeprune

HERE = Path(__file__).resolve().parent
MEAN = 4.9
DEVIATION = 6.0
TRAINING_BATCH = 32
EVALUATION_BATCH = 250
CALIBRATION_IMAGES = 512

Bytes = npt.NDArray[np.uint8]
Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def normalise(images: Bytes) -> npt.NDArray[np.float32]:
    """Pixels uint8 (N, 8, 8) -> network input float32 (N, 1, 8, 8)."""
    return ((images.astype(np.float32) - np.float32(MEAN)) / np.float32(DEVIATION))[:, None]


class InOrder:
    """Batches of a split in file order; any number of passes."""

    def __init__(self, images: Bytes, labels: Bytes, *, batch_size: int = EVALUATION_BATCH) -> None:
        """images (N, 8, 8) and labels (N,), both uint8."""
        self._inputs = normalise(images)
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
    """Batches in a new random order on each pass, each image shifted by up to one pixel.

    What moves in is background. A remainder smaller than a batch is left out.
    """

    def __init__(self, images: Bytes, labels: Bytes, *, batch_size: int = TRAINING_BATCH) -> None:
        """images (N, 8, 8) and labels (N,), both uint8."""
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
        # (N, 3, 3, 8, 8): a view of every shifted copy of every image.
        self._shifted = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))
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
            down, right = rng.integers(0, 3, size=(2, len(chosen)))
            yield normalise(self._shifted[chosen, down, right]), self._labels[chosen]


def read(name: str) -> tuple[Bytes, Bytes]:
    """Images (N, 8, 8) and labels (N,) of the committed split train, validation or test."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return arrays["images"], arrays["labels"]


def load() -> edgeprune.Data:
    """Training, validation and test split, and 512 training images for calibration."""
    images, labels = read("train")
    return edgeprune.Data(
        train=Augmented(images, labels),
        validation=InOrder(*read("validation")),
        test=InOrder(*read("test")),
        calibration=InOrder(images[:CALIBRATION_IMAGES], labels[:CALIBRATION_IMAGES]),
    )
