"""The committed sample: its arrays, its splits, its network and its weights."""

from __future__ import annotations

import hashlib
import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "fashion"
SIZES = {"train": 10_000, "validation": 2_000, "test": 10_000}


def module_of(name: str) -> ModuleType:
    """A script of the sample as a module of its own name, without touching sys.path."""
    spec = importlib.util.spec_from_file_location(f"fashion_{name}", SAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a committed split, read without the sample's own code."""
    with np.load(SAMPLE / f"{name}.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["images", "labels"]
        return arrays["images"], arrays["labels"]


def hashes_of(name: str) -> set[bytes]:
    """One digest an image."""
    return {hashlib.sha256(image.tobytes()).digest() for image in arrays_of(name)[0]}


def dense() -> nn.Module:
    """The network with the committed weights, loaded strictly, in eval mode."""
    model: nn.Module = module_of("model").build()
    model.load_state_dict(load_file(SAMPLE / "dense.safetensors"), strict=True)
    return model.eval()


@pytest.mark.parametrize(("name", "count"), SIZES.items())
def test_split_has_its_size_and_dtype(name, count):
    """A split is `count` grey images of 28x28 and as many labels, all of them bytes."""
    images, labels = arrays_of(name)

    assert (images.shape, images.dtype) == ((count, 28, 28), np.uint8)
    assert (labels.shape, labels.dtype) == ((count,), np.uint8)


@pytest.mark.parametrize(("name", "count"), SIZES.items())
def test_classes_are_balanced(name, count):
    """Each of the ten classes has exactly a tenth of every split."""
    assert np.bincount(arrays_of(name)[1]).tolist() == [count // 10] * 10


def test_no_image_is_in_two_splits():
    """No image of one split, by content, is in another, nor twice in its own."""
    seen = [hashes_of(name) for name in SIZES]

    assert [len(hashes) for hashes in seen] == list(SIZES.values())
    assert len(set().union(*seen)) == sum(SIZES.values())


def test_committed_arrays_fit_in_12_megabytes():
    """The compressed arrays take at most 12 MB, the weights at most 1 MB."""
    assert sum(file.stat().st_size for file in SAMPLE.glob("*.npz")) <= 12_000_000
    assert (SAMPLE / "dense.safetensors").stat().st_size <= 1_000_000


def test_test_images_are_the_official_ones():
    """The first official test labels are 9 2 1 1 6 1 4 6 5 7, as the data set's readme plots."""
    assert arrays_of("test")[1][:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def test_division_is_seeded_balanced_and_disjoint():
    """Dividing the same labels twice gives the same, disjoint, class-balanced indices."""
    divide = module_of("make_data").divide
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 6000)).astype(np.uint8)

    recovery, validation = divide(labels)

    assert np.bincount(labels[recovery]).tolist() == [1000] * 10
    assert np.bincount(labels[validation]).tolist() == [200] * 10
    assert len(np.union1d(recovery, validation)) == 12_000
    assert all(map(np.array_equal, divide(labels), (recovery, validation)))


def test_missing_source_names_the_file_and_the_package(tmp_path):
    """Without Debian's files the script stops, naming the file and what to install."""
    with pytest.raises(SystemExit, match=r"train-images-idx3-ubyte\.gz.*dataset-fashion-mnist"):
        module_of("make_data").read_official(tmp_path, "train")


def test_network_is_within_its_limits():
    """At most 250,000 parameters and 12 M multiply-accumulates, counted by shape with hooks."""
    model = module_of("model").build().eval()
    macs: list[int] = []

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels // module.groups * np.prod(module.kernel_size)
            macs.append(output[0].numel() * int(fan_in))
        elif isinstance(module, nn.Linear):
            macs.append(module.in_features * module.out_features)

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))

    assert 0 < sum(p.numel() for p in model.parameters()) <= 250_000
    assert 0 < sum(macs) <= 12_000_000


def test_committed_weights_are_trained():
    """The committed weights fit strictly and are right on at least 90 % of validation."""
    images, labels = arrays_of("validation")
    inputs = (torch.from_numpy(images).float() / 255 - 0.286) / 0.353

    with torch.no_grad():
        guesses = dense()(inputs[:, None]).argmax(1)

    assert (guesses.numpy() == labels).mean() >= 0.90


def test_splits_are_normalised_in_file_order():
    """Validation comes in file order: float32 of mean 0 and deviation 1 in pixels, int64 labels."""
    data = module_of("data").load()
    inputs, targets = map(np.concatenate, zip(*data.validation, strict=True))
    images, labels = arrays_of("validation")

    assert inputs.shape == (2000, 1, 28, 28)
    assert (inputs.dtype, targets.dtype) == (np.float32, np.int64)
    assert np.array_equal(targets, labels)
    np.testing.assert_allclose(inputs[:, 0] * 0.353 + 0.286, images / 255.0, atol=1e-6)
    assert abs(inputs.mean()) < 0.02
    assert abs(inputs.std() - 1) < 0.02


def test_training_split_is_new_on_each_pass_and_the_same_after_the_same_seed():
    """Two passes differ; after the same seed of torch another object, read for the first time,
    gives what this one gave on its second pass; and the length is known."""
    first, second = module_of("data").load().train, module_of("data").load().train
    passes = []
    for split, seed in ((first, 1), (first, 2), (second, 2)):
        torch.manual_seed(seed)
        passes.append([targets for _, targets in split])

    assert len(passes[0]) == len(first) == 156
    assert not np.array_equal(passes[0], passes[1])
    assert np.array_equal(passes[1], passes[2])


def test_augmentation_only_mirrors_and_shifts():
    """A lone bright pixel stays one pixel, within two of its place or of its mirror image."""
    images = np.zeros((640, 28, 28), np.uint8)
    images[:, 10, 5] = 255
    split = module_of("data").Augmented(images, np.zeros(640, np.uint8), batch_size=640)

    torch.manual_seed(0)
    inputs, _ = next(iter(split))

    bright = np.argwhere(inputs[:, 0] > 0)
    assert len(bright) == 640
    assert set(bright[:, 1]) == {8, 9, 10, 11, 12}
    assert set(bright[:, 2]) == {3, 4, 5, 6, 7, 20, 21, 22, 23, 24}


def test_calibration_is_of_training_images():
    """The calibration inputs are the first 512 images of the recovery set."""
    data = module_of("data").load()
    inputs = np.concatenate([batch for batch, _ in data.calibration])

    assert np.array_equal(inputs, module_of("data").normalise(arrays_of("train")[0][:512]))


def test_recipe_names_files_that_are_there():
    """The recipe is TOML, and the files that it names lie beside it."""
    recipe = tomllib.loads((SAMPLE / "recipe.toml").read_text(encoding="utf-8"))

    assert (SAMPLE / recipe["model"]["weights"]).is_file()
    for section in ("model", "data"):
        assert (SAMPLE / recipe[section]["factory"].split(":")[0]).is_file()
