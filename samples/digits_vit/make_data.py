"""Make the committed arrays of this sample from scikit-learn, which ships the digits.

    pip install scikit-learn==1.9.1
    python samples/digits_vit/make_data.py

The 1,797 images are divided, class by class, with one seeded permutation:

    validation.npz    300 images, 30 of each digit, never trained on
    test.npz          500 images, 50 of each digit
    train.npz         997 images, all others

Each file holds `images`, uint8 (N, 8, 8), 0-16, and `labels`, uint8 (N,). The same NumPy and zlib
write the same bytes again. The division ignores who wrote a digit, as is usual with this set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
SEED = 19980701
CLASSES = 10
PER_CLASS = {"validation": 30, "test": 50}

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


def read_digits() -> tuple[Bytes, Bytes]:
    """All images (1797, 8, 8) and labels (1797,); SystemExit without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        sys.exit(
            "reading the digits failed at package scikit-learn: expected it installed, got "
            "nothing. Run `pip install scikit-learn==1.9.1`."
        )
    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.uint8)


def divide(labels: Bytes) -> dict[str, Indices]:
    """Indices of the splits train, validation and test: disjoint, all of them, shuffled."""
    rng = np.random.default_rng(SEED)
    parts: dict[str, list[Indices]] = {"train": [], **{name: [] for name in PER_CLASS}}
    for label in range(CLASSES):
        members = rng.permutation(np.flatnonzero(labels == label))
        for name, count in PER_CLASS.items():
            parts[name].append(members[:count])
            members = members[count:]
        parts["train"].append(members)
    return {name: rng.permutation(np.concatenate(part)) for name, part in parts.items()}


def main() -> None:
    """Write the three files beside this script and say how large they are."""
    parser = argparse.ArgumentParser(description="Make the arrays of the digits sample.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    options = parser.parse_args()

    images, labels = read_digits()
    for name, chosen in divide(labels).items():
        path = options.out / f"{name}.npz"
        np.savez_compressed(path, images=images[chosen], labels=labels[chosen])
        print(f"{path.name}: {len(chosen)} images, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
