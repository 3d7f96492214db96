"""A task of a few seconds: which of four ways a noisy 8 x 8 grating runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from edgeprune.pipeline.preparation import Job, chosen_target, prepare
from edgeprune.pipeline.progress import Progress, Silent
from edgeprune.pipeline.rounds import Pruning, prune_in_rounds
from edgeprune.pipeline.speed import find_goal
from edgeprune.pipeline.work import open_work
from edgeprune.recipe.schema import load_recipe
from edgeprune.recover.finetune import Settings, finetune

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 4),
    ), (torch.randn(2, 1, 8, 8),), {}
"""

# Every full pass over a split is written down, in whichever process it happens.
DATA = """
from pathlib import Path
import numpy as np
import edgeprune

class Split:
    def __init__(self, name, seed, count, labelled=True):
        rng = np.random.default_rng(seed)
        self.name, self.labelled = name, labelled
        self.targets = rng.integers(0, 4, count)
        self.inputs = rng.normal(size=(count, 1, 8, 8)).astype(np.float32)
        rows, columns = np.mgrid[:8, :8]
        phases = rng.uniform(0, 2 * np.pi, count)
        for image, target, phase in zip(self.inputs, self.targets, phases):
            along = np.cos(np.pi / 4 * target) * columns + np.sin(np.pi / 4 * target) * rows
            image[0] = 0.5 * image[0] + np.cos(np.pi / 2 * along + phase)

    def __len__(self):
        return len(self.targets) // 32

    def __iter__(self):
        with (Path(__file__).parent / "passes.txt").open("a") as file:
            file.write(self.name + "\\n")
        for start in range(0, len(self.targets), 32):
            part = slice(start, start + 32)
            yield self.inputs[part], (self.targets[part] if self.labelled else None)

def load():
    return edgeprune.Data(
        train=Split("train", 0, 640),
        validation=Split("validation", 1, 256),
        test=Split("test", 2, 512),
    )

def unlabelled():
    data = load()
    return edgeprune.Data(
        train=Split("train", 0, 640, False),
        validation=Split("validation", 1, 256, False),
        test=Split("test", 2, 512, False),
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
samples = 0
[recover]
epochs = 1.0
learning_rate = 0.05
[gates]
accuracy_drop = 0.05
size_ratio = 0.9
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small only wait for one another on more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The task's dense weights, trained once: about 99 % on its test split."""
    folder = tmp_path_factory.mktemp("dense")
    modules = []
    for name, text in (("model", MODEL), ("data", DATA)):
        (folder / f"{name}.py").write_text(text)
        spec = importlib.util.spec_from_file_location(f"dense_{name}", folder / f"{name}.py")
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    net = modules[0].build()[0]
    finetune(net, None, modules[1].load().train, Settings(epochs=4, distillation=0))
    return save(net.state_dict())


@pytest.fixture
def task(tmp_path: Path, trained: bytes) -> Callable[..., Path]:
    """task({old: new, ...}) writes the task with those changes to its recipe; the recipe's path."""

    def write(changes: dict[str, str] | None = None) -> Path:
        return _write_task(tmp_path, trained, changes or {})

    return write


def _write_task(folder: Path, trained: bytes, changes: dict[str, str]) -> Path:
    """Model, data, weights and recipe in `folder`."""
    text = RECIPE
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"no {old!r} in the recipe")
        text = text.replace(old, new)
    (folder / "model.py").write_text(MODEL)
    (folder / "data.py").write_text(DATA)
    (folder / "dense.safetensors").write_bytes(trained)
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


@pytest.fixture
def prepared() -> Callable[[Path], Job]:
    """prepared(recipe path): the recipe with everything it names loaded."""

    def load(path: Path) -> Job:
        recipe = load_recipe(path)
        return prepare(recipe, chosen_target(recipe, None), None, Silent())

    return load


@pytest.fixture
def rounds_of(
    tmp_path_factory: pytest.TempPathFactory, prepared: Callable[[Path], Job]
) -> Callable[..., Pruning]:
    """rounds_of(job or recipe path): the rounds, carried out in a work folder of their own."""

    def carry_out(task: Job | Path, progress: Progress | None = None) -> Pruning:
        job = prepared(task) if isinstance(task, Path) else task
        progress = progress or Silent()
        out = tmp_path_factory.mktemp("rounds") / "out"
        with open_work(out, job.recipe, job.target, fresh=False) as work:
            return prune_in_rounds(job, find_goal(job, work, progress), work, progress)

    return carry_out


@pytest.fixture(scope="session")
def write_task() -> Callable[[Path, bytes, dict[str, str]], Path]:
    """write_task(folder, weights, changes) for fixtures that live longer than a test."""
    return _write_task


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, trained: bytes) -> Path:
    """The folder of the task after a run of its recipe to `out`, in a process of its own."""
    folder = tmp_path_factory.mktemp("finished")
    _write_task(folder, trained, {})
    (folder / "go.py").write_text(GO)
    done = subprocess.run(
        [sys.executable, "-W", "error", "go.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    (folder / "printed.txt").write_text(done.stdout + done.stderr)
    (folder / "exit_code.txt").write_text(str(done.returncode))
    return folder


GO = """
from pathlib import Path
import sys
import torch
from edgeprune.measure.settings import Settings
from edgeprune.pipeline.run import run
from edgeprune.recipe.schema import load_recipe

torch.set_num_threads(1)
bundle = run(
    load_recipe("recipe.toml"),
    out=Path("out"),
    measuring=Settings(
        runs=11, least_runs=11, seconds=0.1, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
    ),
)
sys.exit(bundle.exit_code)
"""
