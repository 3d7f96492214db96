"""Bad input to a whole run: one clear error a mistake, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from edgeprune.errors import (
    DataError,
    EdgepruneError,
    ModelNotSupported,
    UsageError,
    UserCodeError,
)
from edgeprune.pipeline.run import run
from edgeprune.recipe.schema import load_recipe

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, last=None):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8, 3), last

    def forward(self, x):
        y = self.b(self.a(x).relu().mean((2, 3)))
        return y if self.last is None else self.last(x, y)

def good():
    return Net(), (torch.randn(2, 1, 6, 6),), {}

def constant():
    return Net(lambda x, y: y * 0 + torch.tensor([1.0, 2.0, 3.0])), (torch.randn(2, 1, 6, 6),), {}

def nan_below_zero():
    net = Net(lambda x, y: y + x.mean((1, 2, 3), True)[:, 0, 0].log())
    return net, (torch.ones(2, 1, 6, 6),), {}

def branches():
    def last(x, y):
        if x.mean() > 0:
            return y
        return -y
    return Net(last), (torch.randn(2, 1, 6, 6),), {}

def fixed_batch():
    class Fixed(Net):
        def forward(self, x):
            return self.b(self.a(x).relu().mean((2, 3)).reshape(4, 8))
    return Fixed(), (torch.randn(4, 1, 6, 6),), {}
"""

DATA = """
import numpy as np
import edgeprune

def batch(seed, dtype=np.float32, channels=1, top=3, spoilt=False):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(8, channels, 6, 6)).astype(dtype)
    if spoilt:
        inputs[3, 0, 2, 2] = np.nan
    return inputs, rng.integers(0, top, 8)

def data(train=None, validation=None):
    good = [batch(seed) for seed in range(4)]
    return edgeprune.Data(train=train or good, validation=validation or good, test=good)

def load():
    return data()

def other_channels():
    return data(train=[batch(0, channels=3)], validation=[batch(0, channels=3)])

def double():
    return data(train=[batch(0, np.float64)])

def nan_in_validation():
    return data(validation=[batch(0), batch(1, spoilt=True)])

def nan_in_training():
    return data(train=[batch(0), batch(1, spoilt=True)])

def labels_of_validation():
    return data(validation=[batch(0), batch(1, top=9)])

def labels_of_training():
    return data(train=[batch(0), batch(1, top=9)])

def first_labels_of_training():
    return data(train=[batch(0, top=9), batch(1)])

def shape_of_training_labels():
    return data(train=[batch(0), (batch(1)[0], np.eye(8, 3, dtype=np.int64))])

def uneven_training_labels():
    return data(train=[batch(0), (batch(1)[0], batch(1)[1][:7])])

def ragged_training_labels():
    return data(train=[batch(0), (batch(1)[0], [[0], [1, 2]])])

def labels_for_own_loss():
    import torch
    loss = lambda out, y: torch.nn.functional.nll_loss(out.log_softmax(1), y)
    good = [batch(seed) for seed in range(4)]
    train = [batch(0), batch(1, top=9)]
    return edgeprune.Data(train=train, validation=good, test=good, loss=loss)

class Some:
    def __init__(self, passes):
        self.passes = passes

    def __iter__(self):
        self.passes -= 1
        return iter([batch(seed) for seed in range(4)] if self.passes >= 0 else [])

def once():
    return data(train=Some(1))

def twice():
    return data(train=Some(2))

def validation_twice():
    return data(validation=Some(2))

def ragged():
    return data(validation=[batch(0), (batch(1)[0][:, :, :5, :2], batch(1)[1])])

def generator():
    return data(train=(batch(seed) for seed in range(4)))

def empty():
    return edgeprune.Data(train=[], validation=[batch(0)], test=[batch(0)])

def nan_in_test():
    good = [batch(seed) for seed in range(4)]
    return edgeprune.Data(train=good, validation=good, test=[batch(0), batch(1, spoilt=True)])

def empty_test():
    good = [batch(seed) for seed in range(4)]
    return edgeprune.Data(train=good, validation=good, test=[])

def loss_is_nan():
    good = [batch(seed) for seed in range(4)]
    return edgeprune.Data(
        train=good, validation=good, test=good, loss=lambda out, y: out.sum() * float("nan")
    )

def leaves():
    raise SystemExit(0)

class Torn(list):
    def __iter__(self):
        yield from super().__iter__()
        raise OSError("the last image is cut short")

def torn(split):
    good = [batch(seed) for seed in range(4)]
    splits = {name: good for name in ("train", "validation", "test")} | {split: Torn(good)}
    return edgeprune.Data(**splits)

def torn_train():
    return torn("train")

def torn_validation():
    return torn("validation")

def torn_test():
    return torn("test")

def triples():
    return data(train=[(*batch(0), 1)])

def raises():
    table = {"train": [batch(0)]}
    return data(train=table["trian"])
"""

MEND = (". Mend the labels; where they are meant so, give Data(loss=...).",)
AGAIN = "Give Data a split that can be read again."

BRANCH = MODEL.splitlines().index("        if x.mean() > 0:") + 1

RECIPE = """
[model]
factory = "model.py:good"
[data]
factory = "data.py:load"
[prune]
rounds = 1
multiple = 1
max_accuracy_drop = 1.0
budget = { keep_fraction = 0.5 }
[recover]
epochs = 1
"""


def write(folder, changes):
    """The task with some words of its recipe changed; the recipe's path."""
    text = RECIPE
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "model.py").write_text(MODEL)
    (folder / "data.py").write_text(DATA)
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


@pytest.mark.parametrize(
    ("model", "data", "kind", "parts"),
    [
        ("good", "other_channels", DataError, ["train split", "(B, 1, 6, 6)", "(B, 3, 6, 6)"]),
        ("good", "double", DataError, ["float32", "float64", "astype(np.float32)"]),
        ("good", "nan_in_validation", DataError, ["batch 1", "input 0", "NaN"]),
        ("good", "nan_in_training", DataError, ["finite numbers", "1 of 288 NaN"]),
        ("good", "labels_of_validation", DataError, ["labels from 0 to 2", "3 classes"]),
        ("good", "labels_of_training", DataError, ["train split, batch 1", "below C", *MEND]),
        ("good", "first_labels_of_training", DataError, ["train split, batch 0", *MEND]),
        ("good", "shape_of_training_labels", DataError, ["train split, batch 1", "(8, 3)", *MEND]),
        ("good", "uneven_training_labels", DataError, ["train split, batch 1", "(7,)", *MEND]),
        ("good", "ragged_training_labels", DataError, ["train split, batch 1, at a list"]),
        ("good", "labels_for_own_loss", UserCodeError, ["train split, batch 1", "Mend the labels"]),
        ("good", "once", DataError, ["the train split", AGAIN]),
        ("good", "twice", DataError, ["the train split", AGAIN]),
        ("good", "validation_twice", DataError, ["the validation split", AGAIN]),
        ("good", "ragged", DataError, ["batch 1", "0 (8, 1, 5, 2) float32"]),
        ("good", "generator", DataError, ["again and again", "one-shot generator"]),
        ("good", "empty", DataError, ["train split", "at least one batch"]),
        ("good", "nan_in_test", DataError, ["batch 1", "1 of 288 NaN"]),
        ("good", "empty_test", DataError, ["test split", "at least one batch"]),
        ("good", "loss_is_nan", DataError, ["train split", "finite number", "got nan"]),
        ("good", "leaves", UserCodeError, ["SystemExit", "data.py:"]),
        ("good", "torn_train", UserCodeError, ["batch 4", "the last image is cut", "data.py:"]),
        ("good", "torn_validation", UserCodeError, ["batch 4", "the last image is cut"]),
        ("good", "torn_test", UserCodeError, ["batch 4", "the last image is cut", "data.py:"]),
        ("good", "triples", DataError, ["pairs (inputs, target)", "tuple of 3"]),
        ("good", "raises", UserCodeError, ["KeyError: 'trian'", "data.py:"]),
        ("constant", "load", UsageError, ["validation split", "the same for all 32 samples"]),
        ("nan_below_zero", "load", UsageError, ["validation split", "NaN for"]),
        ("branches", "load", ModelNotSupported, ["depends on values", f"model.py:{BRANCH}"]),
        ("fixed_batch", "load", DataError, ["batches of 4", "got 8"]),
    ],
)
def test_a_mistake_is_one_error_and_nothing_is_delivered(tmp_path, model, data, kind, parts):
    """The error's class and exit code fit, its text names place, expected and got; no bundle."""
    changes = {"model.py:good": f"model.py:{model}", "data.py:load": f"data.py:{data}"}
    recipe = load_recipe(write(tmp_path, changes))

    with pytest.raises(EdgepruneError) as caught:
        run(recipe, out=tmp_path / "out")

    assert type(caught.value) is kind
    assert caught.value.exit_code == (4 if kind is ModelNotSupported else 2)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert not (tmp_path / "out").exists()


def test_the_users_traceback_is_shown_when_asked_for(tmp_path):
    """From the command line: exit code 2, the line in the message; -vv prints the traceback."""
    recipe = write(tmp_path, {"data.py:load": "data.py:raises"})
    command = [sys.executable, "-m", "edgeprune", "run", recipe, "--out", tmp_path / "out"]
    done = subprocess.run([*command, "--json", "-vv"], capture_output=True, text=True)
    line = DATA.splitlines().index('    return data(train=table["trian"])') + 1

    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["where"]) == ("UserCodeError", f"data.py:{line}")
    assert 'return data(train=table["trian"])' in done.stderr
    assert "KeyError: 'trian'" in done.stderr


def test_a_bundle_outlives_a_failed_run(tmp_path, finished):
    """An error leaves what stood at the place as it was, also with --fresh."""
    out = shutil.copytree(finished / "out", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    bad = load_recipe(write(tmp_path, {"data.py:load": "data.py:nan_in_training"}))

    with pytest.raises(DataError):
        run(bad, out=out, fresh=True)

    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
