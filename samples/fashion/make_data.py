"""Make the committed arrays of this sample from Debian's package `dataset-fashion-mnist`.

    apt-get install dataset-fashion-mnist
    python samples/fashion/make_data.py

The official 60,000 training images are divided, class by class, with one seeded permutation:

    validation.npz   2,000 images, 200 of each class, never trained on
    train.npz       10,000 images, 1,000 of each class: the recovery set
    test.npz        all 10,000 official test images

The dense network is trained on all 58,000 that are not validation (`train.py`), so the recovery
set is a part of what it has seen. Each file holds `images`, uint8 (N, 28, 28), and `labels`,
uint8 (N,). The same NumPy and zlib write the same bytes again.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
HERE = Path(__file__).resolve().parent
SEED = 20170825
CLASSES = 10
VALIDATION_PER_CLASS = 200
RECOVERY_PER_CLASS = 1000

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


def read_idx(path: Path) -> Bytes:
    """Read one gzipped IDX file of unsigned bytes: magic 0, 0, 8, rank, then big-endian sizes.

    Raises SystemExit with what to do if the file is absent or is not such a file.
    """
    if not path.is_file():
        sys.exit(
            f"reading Fashion-MNIST failed at {path}: expected the file of Debian's package "
            "dataset-fashion-mnist, got nothing. Install the package, or name the folder that "
            "holds its four .gz files with --source."
        )
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    sizes = np.frombuffer(content, dtype=">u4", count=rank, offset=4)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank)
    if content[:3] != b"\x00\x00\x08" or values.size != int(np.prod(sizes)):
        sys.exit(
            f"reading Fashion-MNIST failed at {path}: expected an IDX file of unsigned bytes, got "
            "another format. Install Debian's package dataset-fashion-mnist again."
        )
    return values.reshape([int(size) for size in sizes])


def read_official(source: Path, part: str) -> tuple[Bytes, Bytes]:
    """The official `train` (60,000) or `t10k` (10,000) images (N, 28, 28) and labels (N,)."""
    images = read_idx(source / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{part}-labels-idx1-ubyte.gz")
    return images, labels


def divide(labels: Bytes) -> tuple[Indices, Indices]:
    """Indices of the recovery and of the validation images, in a seeded, shuffled order.

    labels (60000,) -> recovery (10000,), validation (2000,); disjoint and class-balanced.
    """
    rng = np.random.default_rng(SEED)
    recovery, validation = [], []
    for label in range(CLASSES):
        members = rng.permutation(np.flatnonzero(labels == label))
        validation.append(members[:VALIDATION_PER_CLASS])
        recovery.append(members[VALIDATION_PER_CLASS:][:RECOVERY_PER_CLASS])
    return rng.permutation(np.concatenate(recovery)), rng.permutation(np.concatenate(validation))


def main() -> None:
    """Write the three files beside this script and say how large they are."""
    parser = argparse.ArgumentParser(description="Make the arrays of the Fashion-MNIST sample.")
    parser.add_argument("--source", type=Path, default=INSTALLED, help="folder of the .gz files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    options = parser.parse_args()

    images, labels = read_official(options.source, "train")
    recovery, validation = divide(labels)
    test_images, test_labels = read_official(options.source, "t10k")
    splits = {
        "train": (images[recovery], labels[recovery]),
        "validation": (images[validation], labels[validation]),
        "test": (test_images, test_labels),
    }
    for name, (split_images, split_labels) in splits.items():
        path = options.out / f"{name}.npz"
        np.savez_compressed(path, images=split_images, labels=split_labels)
        print(f"{path.name}: {len(split_labels)} images, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
