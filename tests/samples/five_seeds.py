"""A sample's recipe from end to end at five seeds, and the accuracy lost over all of them.

The statistic: on each test sample, the dense network is right or not (1 or 0), and of the five
pruned networks a share is right; the sample's loss is their difference. The pooled drop is the mean
loss over the samples, and its interval the 95 % t-interval of that mean. The sample is the unit
of replication: the five networks see the same samples, so they are no more independent of one
another than the answers of one person asked five times.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import edgeprune
from edgeprune.measure.settings import Settings
from edgeprune.pipeline.run import run
from edgeprune.recipe.schema import Recipe, load_recipe
from edgeprune.release.report import Report

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SEEDS = range(5)
# The recipes judge no latency, so the measurement may be the least that the product takes.
LEAST_EFFORT = Settings(
    runs=1, least_runs=1, seconds=0.01, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
)


def module_of(sample: str, name: str) -> ModuleType:
    """A script of a sample as a module of its own name, without touching sys.path."""
    path = SAMPLES / sample / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{sample}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dense(sample: str) -> nn.Module:
    """The network with the committed weights, loaded strictly, in eval mode."""
    model: nn.Module = module_of(sample, "model").build()
    model.load_state_dict(load_file(SAMPLES / sample / "dense.safetensors"), strict=True)
    return model.eval()


def whole(split: object) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of all batches."""
    inputs, targets = map(np.concatenate, zip(*split, strict=True))
    return inputs, targets


def products(model: nn.Module, inputs: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products, counted by torch itself.

    torch does not count fused attention on a CPU, which is left out of both sides alike.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeedRun:
    """One run: its bundle's folder and report, and where its model.onnx is right (N,)."""

    folder: Path
    report: Report
    right: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledDrop:
    """Mean accuracy lost over samples and seeds, 0-1, and its 95 % interval."""

    drop: float
    low: float
    high: float
    samples: int
    seeds: int

    def line(self, sample: str) -> str:
        """The statistic for a person."""
        return (
            f"{sample}: {100 * self.drop:.2f} points lost over {self.seeds} seeds and "
            f"{self.samples} test samples, 95 % paired interval {100 * self.low:.2f} to "
            f"{100 * self.high:.2f}"
        )


def pooled_drop(dense_right: np.ndarray, pruned_right: np.ndarray) -> PooledDrop:
    """The statistic of this module: dense_right (N,), pruned_right (seeds, N), both boolean."""
    losses = dense_right.astype(float) - pruned_right.mean(axis=0)
    count = len(losses)
    reach = float(stats.t.ppf(0.975, count - 1)) * float(losses.std(ddof=1)) / math.sqrt(count)
    mean = float(losses.mean())
    return PooledDrop(
        drop=mean, low=mean - reach, high=mean + reach, samples=count, seeds=len(pruned_right)
    )


def runs_of(sample: str, folder: Path) -> list[SeedRun]:
    """The sample's recipe at every seed; what is right is found by ONNX Runtime alone."""
    recipe = load_recipe(SAMPLES / sample / "recipe.toml")
    inputs, targets = whole(module_of(sample, "data").load().test)
    found = []
    with one_thread():
        for seed in SEEDS:
            out = folder / f"seed{seed}"
            run(seeded(recipe, seed), out=out, measuring=LEAST_EFFORT)
            report = Report.model_validate_json((out / "report.json").read_text(encoding="utf-8"))
            session = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
            scores = session.run(None, {session.get_inputs()[0].name: inputs})[0]
            found.append(SeedRun(folder=out, report=report, right=scores.argmax(1) == targets))
    return found


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed."""
    return recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"seed": seed})})


@contextmanager
def one_thread() -> Iterator[None]:
    """Nets this small only wait for one another on more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pooled_law(sample: str, runs: list[SeedRun], say: Callable[[str], object]) -> PooledDrop:
    """Check what holds for every sample, and give the drop: half the products, all proved.

    Every run meets its budget and parity, every removal is proved and not weakly, and the
    accuracy of the report is the one that ONNX Runtime gives outside of it.
    """
    inputs, targets = whole(module_of(sample, "data").load().test)
    network, example = dense(sample), torch.from_numpy(inputs[:1])
    with torch.no_grad():
        dense_right = network(torch.from_numpy(inputs)).argmax(1).numpy() == targets
    for each in runs:
        report = each.report
        outcomes = {verdict.gate: verdict.outcome for verdict in report.verdicts}
        assert (outcomes["budget"], outcomes["parity"]) == ("pass", "pass")
        removals = [row.proof for row in report.rounds if row.proof is not None]
        assert removals
        assert all(proof.error <= proof.tolerance and not proof.weak for proof in removals)
        assert report.dense.macs >= 2 * report.pruned.macs
        small = edgeprune.load(each.folder)
        assert products(network, example) >= 2 * products(small, example)
        assert math.isclose(report.pruned.accuracy, each.right.mean(), abs_tol=1e-9)
    pooled = pooled_drop(dense_right, np.stack([each.right for each in runs]))
    say(pooled.line(sample))
    return pooled
