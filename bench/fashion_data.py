"""The Fashion-MNIST sample's data with training batches that follow the seed of a run.

The sample itself trains in the same order whatever the seed; a comparison over seeds must not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import edgeprune

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "fashion"
if str(SAMPLE) not in sys.path:
    sys.path.insert(0, str(SAMPLE))

import data as sample_data  # noqa: E402  (a neighbour of the sample's other scripts)


class Reseeded:
    """The sample's augmented training batches; each pass takes its seed from torch's generator."""

    def __init__(self) -> None:
        self._images, self._labels = sample_data.read("train")

    def _pass(self, seed: int) -> sample_data.Augmented:
        return sample_data.Augmented(self._images, self._labels, seed=seed)

    def __len__(self) -> int:
        """Number of batches in a pass."""
        return len(self._pass(0))

    def __iter__(self) -> Iterator[sample_data.Batch]:
        return iter(self._pass(int(torch.randint(2**31, ()))))


def load() -> edgeprune.Data:
    """The sample's splits, the training one reseeded."""
    return replace(sample_data.load(), train=Reseeded())
