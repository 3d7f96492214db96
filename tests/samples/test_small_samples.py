"""The committed vowels and digits: arrays, splits, networks, weights, and the scripts beside."""

from __future__ import annotations

import hashlib
import tomllib

import five_seeds
import numpy as np
import pytest
import torch

SAMPLES = ("vowels", "digits_vit")
SPLITS = ("train", "validation", "test")
VALUES = {"vowels": "series", "digits_vit": "images"}
SHAPES = {"vowels": (12, 29), "digits_vit": (8, 8)}
COUNTS = {"vowels": (180, 90, 370), "digits_vit": (997, 300, 500)}
# How many of each class: the same in every class, or as the sources' own descriptions list them.
CLASSES = {
    ("vowels", "train"): [20] * 9,
    ("vowels", "validation"): [10] * 9,
    ("vowels", "test"): [31, 35, 88, 44, 29, 24, 40, 50, 29],
    ("digits_vit", "validation"): [30] * 10,
    ("digits_vit", "test"): [50] * 10,
    # scikit-learn's 178 182 177 183 181 182 181 179 174 180, less the 80 above.
    ("digits_vit", "train"): [98, 102, 97, 103, 101, 102, 101, 99, 94, 100],
}


def arrays_of(sample: str, split: str) -> dict[str, np.ndarray]:
    """A committed file, read without the sample's own code."""
    with np.load(five_seeds.SAMPLES / sample / f"{split}.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("sample", SAMPLES)
def test_arrays_have_their_sizes(sample):
    """Each split holds as many values of the sample's shape as it says, and as many labels."""
    for split, count in zip(SPLITS, COUNTS[sample], strict=True):
        arrays = arrays_of(sample, split)
        assert arrays[VALUES[sample]].shape == (count, *SHAPES[sample])
        assert (arrays["labels"].shape, arrays["labels"].dtype) == ((count,), np.uint8)


@pytest.mark.parametrize(("sample", "split"), CLASSES)
def test_classes_are_as_published(sample, split):
    """The test utterances of each speaker, and the digits of each class, are the source's."""
    assert np.bincount(arrays_of(sample, split)["labels"]).tolist() == CLASSES[sample, split]


@pytest.mark.parametrize("sample", SAMPLES)
def test_no_value_is_in_two_splits(sample):
    """No utterance and no image, by content, is in two splits or twice in its own."""
    digests = [
        hashlib.sha256(value.tobytes()).digest()
        for split in SPLITS
        for value in arrays_of(sample, split)[VALUES[sample]]
    ]

    assert len(set(digests)) == len(digests) == sum(COUNTS[sample])


def test_series_end_where_their_lengths_say():
    """Values are zero from an utterance's end on, lengths are 7-29, and none is zero before."""
    for split in SPLITS:
        arrays = arrays_of("vowels", split)
        inside = np.arange(29) < arrays["lengths"][:, None]
        assert 7 <= arrays["lengths"].min() <= arrays["lengths"].max() <= 29
        assert (arrays["series"].any(axis=1) == inside).all()


def test_first_utterance_and_image_are_the_sources():
    """A value that the sources print is in the arrays: 1.860936 in an utterance, 0-16 pixels."""
    series = np.concatenate([arrays_of("vowels", split)["series"] for split in SPLITS])
    pixels = np.concatenate([arrays_of("digits_vit", split)["images"] for split in SPLITS])

    assert (series[:, 0, 0] == np.float32(1.860936)).sum() == 1
    assert (pixels.min(), pixels.max()) == (0, 16)
    # The first image of scikit-learn's own example, a zero, by its second row.
    assert (pixels[:, 1] == [0, 0, 13, 15, 10, 15, 5, 0]).all(axis=1).any()


@pytest.mark.parametrize("sample", SAMPLES)
def test_dense_networks_are_trained(sample):
    """The committed weights fit strictly; validation is right on 95 % of vowels, 97 % of digits."""
    inputs, targets = five_seeds.whole(five_seeds.module_of(sample, "data").load().validation)

    with torch.no_grad():
        guesses = five_seeds.dense(sample)(torch.from_numpy(inputs)).argmax(1)

    least = {"vowels": 0.95, "digits_vit": 0.97}[sample]
    assert (guesses.numpy() == targets).mean() >= least


@pytest.mark.parametrize("sample", SAMPLES)
def test_evaluation_splits_are_in_file_order(sample):
    """Validation and test yield every label once, in the file's order; calibration is training."""
    data = five_seeds.module_of(sample, "data").load()

    for split, batches in (("validation", data.validation), ("test", data.test)):
        inputs, targets = five_seeds.whole(batches)
        assert np.array_equal(targets, arrays_of(sample, split)["labels"])
        assert (inputs.dtype, targets.dtype) == (np.float32, np.int64)
    labels = five_seeds.whole(data.calibration)[1]
    assert np.array_equal(labels, arrays_of(sample, "train")["labels"][: len(labels)])


@pytest.mark.parametrize("sample", SAMPLES)
def test_training_batches_follow_torchs_generator(sample):
    """The same seed gives the same passes, the next pass differs, and so does another seed."""
    split = five_seeds.module_of(sample, "data").load().train

    def passes(seed: int) -> list[np.ndarray]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return [np.concatenate([inputs for inputs, _ in split]) for _ in range(2)]

    first, second = passes(0)
    assert np.array_equal(first, passes(0)[0])
    assert np.array_equal(second, passes(0)[1])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, passes(1)[0])


def test_vowels_are_normalised_over_spoken_steps():
    """Over the spoken training steps each coefficient has mean 0 and deviation 1; padding is 0."""
    data = five_seeds.module_of("vowels", "data").load()
    inputs, _ = five_seeds.whole(data.calibration)
    lengths = arrays_of("vowels", "train")["lengths"]
    spoken = np.concatenate([one[:, :n].T for one, n in zip(inputs, lengths, strict=True)])

    np.testing.assert_allclose(spoken.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(spoken.std(0), 1, atol=1e-4)
    assert all(not one[:, n:].any() for one, n in zip(inputs, lengths, strict=True))


def test_vowels_are_only_shifted_and_roughened():
    """A shifted utterance keeps its length and order: its values lie near those it came from."""
    module = five_seeds.module_of("vowels", "data")
    lengths = np.array([7, 29, 12] * 6, np.uint8)
    inputs = np.zeros((18, 12, 29), np.float32)
    for one, n in zip(inputs, lengths, strict=True):
        one[:, :n] = np.arange(10, 10 + n)

    varied, labels = next(iter(module.Augmented(inputs, lengths, np.arange(18, dtype=np.uint8))))

    for one, n in zip(varied, lengths[labels], strict=True):
        steps = np.flatnonzero(one.any(axis=0))
        assert np.array_equal(steps, np.arange(steps[0], steps[0] + n))
        assert np.abs(one[:, steps] - np.arange(10, 10 + n)).max() < 6 * module.NOISE
    assert len({int(np.flatnonzero(one.any(axis=0))[0]) for one in varied}) > 1


def test_digits_are_only_shifted():
    """A lone bright pixel stays one pixel, within one of its place."""
    module = five_seeds.module_of("digits_vit", "data")
    images = np.zeros((32, 8, 8), np.uint8)
    images[:, 3, 4] = 16

    inputs, _ = next(iter(module.Augmented(images, np.zeros(32, np.uint8))))

    bright = np.argwhere(inputs[:, 0] > 0)
    assert len(bright) == 32
    assert set(bright[:, 1]) == {2, 3, 4}
    assert set(bright[:, 2]) == {3, 4, 5}


def test_utterances_are_read_from_text(tmp_path):
    """A .ts file of two utterances becomes padded series, lengths, and speakers from 0."""
    rows = [
        ":".join([",".join(["1.5"] * n)] * 12 + [speaker]) for n, speaker in ((2, "1"), (29, "9"))
    ]
    path = tmp_path / "two.ts"
    path.write_text("#words\n@data\n" + "\n".join(rows) + "\n")

    series, lengths, labels = five_seeds.module_of("vowels", "make_data").read_ts(path)

    assert (lengths.tolist(), labels.tolist()) == ([2, 29], [0, 8])
    assert np.array_equal(series[0, 5], [1.5] * 2 + [0] * 27)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "expected aeon's file"), ("@data\n1,2:3,4:1\n", "expected 12 channels")],
)
def test_a_wrong_text_file_is_named(tmp_path, text, said):
    """A file that is missing or has other channels stops the script with what to do."""
    path = tmp_path / "JapaneseVowels_TRAIN.ts"
    if text is not None:
        path.write_text(text)

    with pytest.raises(SystemExit, match=said) as stopped:
        five_seeds.module_of("vowels", "make_data").read_ts(path)

    assert str(path) in str(stopped.value)


def test_divisions_are_seeded_and_disjoint():
    """Dividing the same labels twice gives the same indices, each exactly once."""
    vowels = five_seeds.module_of("vowels", "make_data").divide
    digits = five_seeds.module_of("digits_vit", "make_data").divide
    speakers = np.repeat(np.arange(9), 30).astype(np.uint8)
    classes = np.random.default_rng(0).integers(0, 10, 1797).astype(np.uint8)

    parts = [*vowels(speakers)], [*digits(classes).values()]

    assert [len(part) for part in parts[0]] == [180, 90]
    assert np.array_equal(np.sort(np.concatenate(parts[0])), np.arange(270))
    assert np.array_equal(np.sort(np.concatenate(parts[1])), np.arange(1797))
    assert all(map(np.array_equal, parts[1], digits(classes).values()))


@pytest.mark.parametrize("sample", SAMPLES)
def test_recipes_name_files_that_are_there(sample):
    """The recipe is TOML, its files lie beside it, and the data's licence does too."""
    folder = five_seeds.SAMPLES / sample
    recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))

    assert (folder / recipe["model"]["weights"]).is_file()
    for section in ("model", "data"):
        assert (folder / recipe[section]["factory"].split(":")[0]).is_file()
    assert "Creative Commons Attribution 4.0" in (folder / "LICENSE-DATA").read_text()
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) <= 1_000_000
