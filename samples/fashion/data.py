"""The committed Fashion-MNIST arrays as edgeprune's splits.

Inputs are float32 (N, 1, 28, 28): `(pixel / 255 - 0.286) / 0.353`, the mean and the standard
deviation of the official training images. Targets are int64 (N,), the class 0-9. The training
split is shuffled, mirrored and shifted anew on each pass; the others are read in file order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import edgeprune

HERE = Path(__file__).resolve().parent
MEAN = 0.286
DEVIATION = 0.353
SHIFT_PIXELS = 2
TRAINING_BATCH = 64
EVALUATION_BATCH = 500
CALIBRATION_IMAGES = 512

Bytes = npt.NDArray[np.uint8]
Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def normalise(images: Bytes) -> npt.NDArray[np.float32]:
    """Pixels uint8 (N, 28, 28) -> network input float32 (N, 1, 28, 28)."""
    scaled = images.astype(np.float32) / np.float32(255)
    return ((scaled - np.float32(MEAN)) / np.float32(DEVIATION))[:, None]


class InOrder:
    """Batches of a split in file order, without augmentation; any number of passes."""

    def __init__(self, images: Bytes, labels: Bytes, *, batch_size: int = EVALUATION_BATCH) -> None:
        """images (N, 28, 28) and labels (N,), both uint8."""
        self._images = images
        self._labels = labels.astype(np.int64)
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Number of batches in a pass; the last one may be smaller."""
        return -(-len(self._labels) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._labels), self._batch_size):
            chosen = slice(start, start + self._batch_size)
            yield normalise(self._images[chosen]), self._labels[chosen]


class Augmented:
    """Batches in a new random order on each pass, mirrored (half of them) and shifted.

    The shift is up to 2 pixels either way on both axes, filled with background. A remainder smaller
    than a batch is left out, so that batch norm never sees a tiny one. Each pass takes its seed
    from torch's generator, which a run seeds before every step, and keeps none of its own: so a
    run that was interrupted meets the same batches as one that was not.
    """

    def __init__(self, images: Bytes, labels: Bytes, *, batch_size: int = TRAINING_BATCH) -> None:
        """images (N, 28, 28) and labels (N,), both uint8."""
        edge = (SHIFT_PIXELS, SHIFT_PIXELS)
        padded = np.pad(images, ((0, 0), edge, edge))
        # (N, 5, 5, 28, 28): a view of every shifted copy of every image.
        self._shifted = np.lib.stride_tricks.sliding_window_view(
            padded, images.shape[1:], axis=(1, 2)
        )
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
            down, right = rng.integers(0, 2 * SHIFT_PIXELS + 1, size=(2, len(chosen)))
            images = self._shifted[chosen, down, right]
            mirrored = rng.random(len(chosen)) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
            yield normalise(images), self._labels[chosen]


def read(name: str) -> tuple[Bytes, Bytes]:
    """Images (N, 28, 28) and labels (N,) of the committed split train, validation or test."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return arrays["images"], arrays["labels"]


def load() -> edgeprune.Data:
    """Recovery, validation and test split, and 512 training images for calibration."""
    images, labels = read("train")
    return edgeprune.Data(
        train=Augmented(images, labels),
        validation=InOrder(*read("validation")),
        test=InOrder(*read("test")),
        calibration=InOrder(images[:CALIBRATION_IMAGES], labels[:CALIBRATION_IMAGES]),
    )
