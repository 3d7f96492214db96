"""A whole run on a task of one's own: regression from a dict of inputs to a dict of outputs."""

from __future__ import annotations

import json
import re

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeprune.errors import DataError
from edgeprune.measure.settings import Settings
from edgeprune.pipeline.run import run
from edgeprune.recipe.factory import load_factory, parse_factory
from edgeprune.recipe.schema import load_recipe
from edgeprune.recover.finetune import Settings as Training
from edgeprune.recover.finetune import finetune

MODEL = """
import torch
from torch import nn

class Meter(nn.Module):
    def __init__(self):
        super().__init__()
        self.signal = nn.Sequential(nn.Conv1d(2, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 16, 3))
        self.context = nn.Linear(3, 16)
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.value, self.spread = nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, signal, context):
        seen = self.signal(signal).relu().mean(2)
        body = self.body(torch.cat([seen, self.context(context).relu()], 1))
        return {"value": self.value(body)[:, 0], "spread": self.spread(body)[:, 0].exp()}

def build():
    torch.manual_seed(0)
    example = {"signal": torch.randn(2, 2, 20), "context": torch.randn(2, 3)}
    return Meter(), (), example
"""

# The amplitude of a noisy wave, times a gain that the context tells.
DATA = """
import numpy as np
import torch
import edgeprune

class Waves:
    def __init__(self, seed, count, labelled=True):
        rng = np.random.default_rng(seed)
        size, phase = rng.uniform(0.5, 2, count), rng.uniform(0, 6, count)
        time = np.arange(20) * 0.7
        wave = size[:, None] * np.sin(time + phase[:, None])
        self.signal = np.stack([wave, np.cos(time) * wave], 1) + rng.normal(0, 0.05, (count, 2, 20))
        self.context = rng.uniform(0, 1, (count, 3)).astype(np.float32)
        self.target = (size * (1 + self.context[:, 0])).astype(np.float32)
        self.signal, self.labelled = self.signal.astype(np.float32), labelled

    def __iter__(self):
        for start in range(0, len(self.target), 32):
            part = slice(start, start + 32)
            inputs = {"signal": self.signal[part], "context": self.context[part]}
            yield inputs, self.target[part] if self.labelled else None

def negative_rmse(outputs, targets):
    value, spread = outputs
    return -float(np.sqrt(np.mean((value - targets) ** 2)))

def loss(outputs, target):
    return torch.nn.functional.mse_loss(outputs["value"], target)

def load(labelled=True):
    return edgeprune.Data(
        train=Waves(0, 768, labelled), validation=Waves(1, 128, labelled),
        test=Waves(2, 256, labelled), metric=negative_rmse, loss=loss,
    )

def unlabelled():
    return load(labelled=False)

def tuples():
    split = [((np.zeros((4, 2, 20), np.float32), np.zeros((4, 3), np.float32)), None)]
    return edgeprune.Data(train=split, validation=split, test=split)
"""

RECIPE = """
[model]
factory = "model.py:build"
weights = "dense.safetensors"
[data]
factory = "data.py:load"
[prune]
rounds = 2
multiple = 4
max_accuracy_drop = 0.1
budget = { keep_fraction = 0.5 }
[repair]
samples = 64
[recover]
epochs = 2
[gates]
accuracy_drop = 0.1
"""

QUICK = Settings(
    runs=11, least_runs=11, seconds=0.1, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """A folder with the task and dense weights trained on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("regression")
    (folder / "model.py").write_text(MODEL)
    (folder / "data.py").write_text(DATA)
    (folder / "recipe.toml").write_text(RECIPE)
    data = load_factory(parse_factory("data.py:load"), folder)()
    net = load_factory(parse_factory("model.py:build"), folder)()[0]
    finetune(net, None, data.train, Training(epochs=10, distillation=0), data.loss)
    save_file(net.state_dict(), folder / "dense.safetensors")
    yield folder
    torch.set_num_threads(threads)


def test_a_regression_with_dicts_keeps_its_error(regression):
    """Half the units go; the file's RMSE, on waves made anew, is what the report says."""
    run(load_recipe(regression / "recipe.toml"), out=regression / "out", measuring=QUICK)
    report = json.loads((regression / "out" / "report.json").read_text())
    data = load_factory(parse_factory("data.py:load"), regression)()
    session = ort.InferenceSession(
        regression / "out" / "model.onnx", providers=["CPUExecutionProvider"]
    )

    (verdict,) = [v for v in report["verdicts"] if v["gate"] == "accuracy"]
    assert -0.4 < report["dense"]["accuracy"] < 0
    assert verdict["outcome"] == "pass"
    assert report["pruned"]["params"] < 0.5 * report["dense"]["params"]
    assert [node.name for node in session.get_inputs()] == ["signal", "context"]
    feeds = {"signal": data.test.signal, "context": data.test.context}
    value = session.run(None, feeds)[0]
    rmse = np.sqrt(np.mean((value - data.test.target) ** 2))
    assert report["pruned"]["accuracy"] == pytest.approx(-rmse, rel=1e-5)
    assert (report["metric"], verdict["unit"]) == ("own", "metric")


def test_an_error_is_not_shown_as_a_percentage(regression):
    """The page, its charts and the summary show a metric of one's own as the number it is."""
    out = regression / "out"
    shown = f"{json.loads((out / 'report.json').read_text())['pruned']['accuracy']:.4g}"

    for name in ("summary.md", "report.html"):
        text = (out / name).read_text().replace("\u202f", " ").replace("\\", "")
        assert shown in text
        assert not re.search(r"-\d+(\.\d+)? %</text>|-\d\d\.\d\d %|[0-9] points", text), name


def test_an_archive_without_labels_is_judged_in_all_but_accuracy(regression):
    """A .pt2 file and targets of None: repaired, taught by the dense model; exit code 3."""
    net, args, kwargs = load_factory(parse_factory("model.py:build"), regression)()
    net.load_state_dict(load_file(regression / "dense.safetensors"))
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in kwargs}
    program = torch.export.export(net.eval(), args, kwargs, dynamic_shapes=shapes)
    torch.export.save(program, regression / "net.pt2")
    recipe = regression / "unlabelled.toml"
    model = 'factory = "model.py:build"\nweights = "dense.safetensors"'
    assert model in RECIPE
    recipe.write_text(
        RECIPE.replace("data.py:load", "data.py:unlabelled").replace(model, 'factory = "net.pt2"')
    )
    bundle = run(load_recipe(recipe), out=regression / "unlabelled", measuring=QUICK)
    outcomes = {v.gate: v.outcome for v in bundle.report.verdicts}

    assert outcomes["accuracy"] == "inconclusive"
    assert outcomes["parity"] == outcomes["budget"] == "pass"
    assert bundle.exit_code == 3
    assert all(r.accepted for r in bundle.report.rounds)
    assert bundle.report.dense.accuracy is None
    data = load_factory(parse_factory("data.py:load"), regression)()
    session = ort.InferenceSession(
        regression / "unlabelled" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    feeds = {"signal": data.test.signal, "context": data.test.context}
    value = session.run(None, feeds)[0]
    assert np.sqrt(np.mean((value - data.test.target) ** 2)) < 0.5 * data.test.target.std()


def test_positions_for_a_model_of_keywords_are_refused(regression):
    """A tuple where the model's example has names: said before anything is pruned."""
    recipe = regression / "tuples.toml"
    recipe.write_text(RECIPE.replace("data.py:load", "data.py:tuples"))

    with pytest.raises(DataError, match="keyword context, keyword signal.*got input 0, input 1"):
        run(load_recipe(recipe), out=regression / "tuples", measuring=QUICK)
