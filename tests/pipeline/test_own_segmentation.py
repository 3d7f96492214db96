"""A whole run on a task of one's own: segmentation, with per-pixel labels, own metric and loss."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file

from edgeprune.measure.settings import Settings
from edgeprune.pipeline.run import run
from edgeprune.recipe.factory import load_factory, parse_factory
from edgeprune.recipe.schema import load_recipe
from edgeprune.recover.finetune import Settings as Training
from edgeprune.recover.finetune import finetune

MODEL = """
import torch
from torch import nn
from torch.nn import functional

class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(
            nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        )
        self.head = nn.Conv2d(40, 3, 1)

    def forward(self, image):
        fine = self.down(image)
        coarse = functional.interpolate(self.deep(fine), scale_factor=2.0)
        return self.head(torch.cat([fine, coarse], 1))

def build():
    torch.manual_seed(0)
    return Segmenter(), (torch.randn(2, 1, 12, 12),), {}
"""

# Noise with one bright square and one bar of stripes; each pixel is background, square or bar.
DATA = """
import numpy as np
import torch
import edgeprune

class Scenes(torch.utils.data.Dataset):
    def __init__(self, seed, count):
        rng = np.random.default_rng(seed)
        self.images = rng.normal(0, 0.4, (count, 1, 12, 12)).astype(np.float32)
        self.labels = np.zeros((count, 12, 12), np.int64)
        for image, label in zip(self.images, self.labels):
            row, column = rng.integers(0, 8, 2)
            image[0, row : row + 4, column : column + 4] += 1.5
            label[row : row + 4, column : column + 4] = 1
            bar = rng.integers(0, 10)
            image[0, bar : bar + 2] += np.resize([1.0, -1.0], 12)
            label[bar : bar + 2] = 2

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]

def batches(seed, count):
    return torch.utils.data.DataLoader(Scenes(seed, count), batch_size=32)

def mean_iou(outputs, targets):
    found = outputs.argmax(1)
    scores = []
    for kind in range(3):
        both = ((found == kind) & (targets == kind)).sum()
        scores.append(both / max(1, ((found == kind) | (targets == kind)).sum()))
    return float(np.mean(scores))

def soft_dice_and_entropy(outputs, target):
    share = outputs.softmax(1)
    truth = torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2)
    dice = 1 - 2 * (share * truth).sum() / (share + truth).sum()
    return dice + torch.nn.functional.cross_entropy(outputs, target)

def load():
    return edgeprune.Data(
        train=batches(0, 512), validation=batches(1, 128), test=batches(2, 256),
        metric=mean_iou, loss=soft_dice_and_entropy,
    )
"""

RECIPE = """
[model]
factory = "model.py:build"
weights = "dense.safetensors"
[data]
factory = "data.py:load"
[prune]
criterion = "l1"
rounds = 2
multiple = 4
max_accuracy_drop = 0.05
budget = { keep_fraction = 0.5 }
[repair]
samples = 64
[recover]
epochs = 2
[gates]
accuracy_drop = 0.05
"""


@pytest.fixture(scope="module")
def finished_segmentation(tmp_path_factory):
    """The folder of a run; the dense weights were trained there, with the user's own loss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("segmentation")
    (folder / "model.py").write_text(MODEL)
    (folder / "data.py").write_text(DATA)
    (folder / "recipe.toml").write_text(RECIPE)
    data = load_factory(parse_factory("data.py:load"), folder)()
    net = load_factory(parse_factory("model.py:build"), folder)()[0]
    finetune(net, None, data.train, Training(epochs=5, distillation=0), data.loss)
    save_file(net.state_dict(), folder / "dense.safetensors")
    quick = Settings(
        runs=11, least_runs=11, seconds=0.1, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
    )
    run(load_recipe(folder / "recipe.toml"), out=folder / "out", measuring=quick)
    torch.set_num_threads(threads)
    return folder


def test_a_segmentation_net_keeps_its_mean_iou(finished_segmentation):
    """Half the units go; the pruned file's mIoU, on scenes made anew, is what the report says."""
    report = json.loads((finished_segmentation / "out" / "report.json").read_text())
    data = load_factory(parse_factory("data.py:load"), finished_segmentation)()
    session = ort.InferenceSession(
        finished_segmentation / "out" / "model.onnx", providers=["CPUExecutionProvider"]
    )

    (verdict,) = [v for v in report["verdicts"] if v["gate"] == "accuracy"]
    assert report["dense"]["accuracy"] > 0.7
    assert verdict["outcome"] == "pass"
    assert report["pruned"]["params"] < 0.5 * report["dense"]["params"]
    images, labels = (torch.cat(parts).numpy() for parts in zip(*data.test, strict=True))
    scores = session.run(None, {session.get_inputs()[0].name: images})[0]
    shares = []
    for kind in range(3):
        found, true = scores.argmax(1) == kind, labels == kind
        shares.append((found & true).sum() / (found | true).sum())
    assert report["pruned"]["accuracy"] == pytest.approx(np.mean(shares), abs=1e-6)


def test_the_input_keeps_the_name_of_the_users_argument(finished_segmentation):
    """model.onnx takes `image` of any batch and gives a map of three scores a pixel."""
    session = ort.InferenceSession(
        finished_segmentation / "out" / "model.onnx", providers=["CPUExecutionProvider"]
    )

    assert [(i.name, i.shape) for i in session.get_inputs()] == [("image", ["batch", 1, 12, 12])]
    assert session.get_outputs()[0].shape == ["batch", 3, 12, 12]
