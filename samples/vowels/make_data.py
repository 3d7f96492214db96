"""Make the committed arrays of this sample from the package `aeon`, which ships JapaneseVowels.

    pip install aeon==1.6.0
    python samples/vowels/make_data.py

The official 270 training utterances are divided, speaker by speaker, with one seeded permutation:

    train.npz       180 utterances, 20 of each speaker
    validation.npz   90 utterances, 10 of each speaker, never trained on
    test.npz        all 370 official test utterances, 24-88 of each speaker

Each file holds `series`, float32 (N, 12, 29), zero beyond an utterance's end; `lengths`, uint8
(N,), in steps; `labels`, uint8 (N,), the speaker 0-8. The same NumPy and zlib write the same
bytes again. aeon is only found, not imported: its files are text.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
INSIDE_AEON = Path("datasets", "data", "JapaneseVowels")
SEED = 19991103
SPEAKERS = 9
CHANNELS = 12
STEPS = 29
VALIDATION_PER_SPEAKER = 10

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def installed() -> Path:
    """The folder of the data set inside the installed aeon; SystemExit if there is none."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        sys.exit(
            "reading JapaneseVowels failed at package aeon: expected it installed, got nothing. "
            "Run `pip install aeon==1.6.0`, or name the folder of the .ts files with --source."
        )
    return Path(spec.origin).parent / INSIDE_AEON


def read_ts(path: Path) -> tuple[Floats, Bytes, Bytes]:
    """One .ts file: series (N, 12, 29) padded with zeros, lengths (N,), speakers 0-8 (N,).

    After `@data`, a line is an utterance: 12 channels and the speaker 1-9, joined by colons, the
    steps of a channel by commas. Raises SystemExit if the file is absent or is not such a file.
    """
    if not path.is_file():
        sys.exit(
            f"reading JapaneseVowels failed at {path}: expected aeon's file, got nothing. Install "
            "aeon 1.6.0, or name the folder of the .ts files with --source."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines[lines.index("@data") + 1 :] if line] if "@data" in lines else []
    series = np.zeros((len(rows), CHANNELS, STEPS), np.float32)
    lengths, labels = np.zeros((2, len(rows)), np.uint8)
    for index, row in enumerate(rows):
        *channels, speaker = row.split(":")
        values = np.array([channel.split(",") for channel in channels], np.float32)
        if values.shape[0] != CHANNELS or not 0 < values.shape[1] <= STEPS:
            sys.exit(
                f"reading JapaneseVowels failed at {path}, utterance {index + 1}: expected 12 "
                f"channels of 1-29 steps, got {values.shape}. Install aeon 1.6.0 again."
            )
        series[index, :, : values.shape[1]] = values
        lengths[index], labels[index] = values.shape[1], int(speaker) - 1
    return series, lengths, labels


def divide(labels: Bytes) -> tuple[Indices, Indices]:
    """Indices of the training and of the validation utterances, in a seeded, shuffled order.

    labels (270,) -> training (180,), validation (90,); disjoint, the same for each speaker.
    """
    rng = np.random.default_rng(SEED)
    training, validation = [], []
    for label in range(SPEAKERS):
        members = rng.permutation(np.flatnonzero(labels == label))
        validation.append(members[:VALIDATION_PER_SPEAKER])
        training.append(members[VALIDATION_PER_SPEAKER:])
    return rng.permutation(np.concatenate(training)), rng.permutation(np.concatenate(validation))


def main() -> None:
    """Write the three files beside this script and say how large they are."""
    parser = argparse.ArgumentParser(description="Make the arrays of the JapaneseVowels sample.")
    parser.add_argument("--source", type=Path, help="folder of the .ts files; default: aeon's")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    options = parser.parse_args()
    source = options.source or installed()

    official = read_ts(source / "JapaneseVowels_TRAIN.ts")
    training, validation = divide(official[2])
    splits = {
        "train": tuple(array[training] for array in official),
        "validation": tuple(array[validation] for array in official),
        "test": read_ts(source / "JapaneseVowels_TEST.ts"),
    }
    for name, (series, lengths, labels) in splits.items():
        path = options.out / f"{name}.npz"
        np.savez_compressed(path, series=series, lengths=lengths, labels=labels)
        print(f"{path.name}: {len(labels)} utterances, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
