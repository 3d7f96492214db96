"""The schedule of pairs and what its statistics decide, on scripted times: nothing is timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.measure import Job, Samples, ScriptedRunner, Settings, measure_pairs, ratio
from edgeprune.targets import Target

FEW = Settings(runs=4, least_runs=1, pilot_pairs=2, least_pairs=4, most_pairs=8)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two files that a scripted runner tells apart by name; it never opens them."""
    dense, pruned = tmp_path / "dense.onnx", tmp_path / "pruned.onnx"
    dense.write_bytes(b"dense")
    pruned.write_bytes(b"pruned")
    return dense, pruned


def is_dense(job: Job) -> bool:
    """Whether a job is for the baseline."""
    return job.model.endswith("dense.onnx")


def noisy(seed: int, slower: float) -> Callable[[Job, int], list[float]]:
    """Times with 2 % noise a process and 4 % slow drift; the candidate is `slower` times slower."""
    rng = np.random.default_rng(seed)

    def script(job: Job, index: int) -> list[float]:
        drift = 1 + 0.04 * math.sin(index / 7)
        level = drift * math.exp(0.02 * rng.standard_normal())
        return [level if is_dense(job) else level * slower] * job.runs

    return script


def test_every_pair_runs_both_models_and_keeps_every_sample(
    files: tuple[Path, Path], local: Target
) -> None:
    """Jobs alternate in pairs of one dense and one pruned, and come back in the order given."""
    runner = ScriptedRunner(lambda job, index: [float(index + 1)] * 3)

    found = measure_pairs(*files, local, FEW, runner=runner)

    pairs = list(zip(runner.jobs[::2], runner.jobs[1::2], strict=True))
    assert [{is_dense(one), is_dense(other)} for one, other in pairs] == [{True, False}] * len(
        pairs
    )
    assert found.baseline_first == tuple(is_dense(one) for one, _ in pairs)
    for index, baseline_first in enumerate(found.baseline_first):
        earlier, later = float(2 * index + 1), float(2 * index + 2)
        expected = (earlier, later) if baseline_first else (later, earlier)
        assert found.baseline[index].times_ms == (expected[0],) * 3
        assert found.candidate[index].times_ms == (expected[1],) * 3


def test_order_is_random_balanced_and_seeded(files: tuple[Path, Path], local: Target) -> None:
    """Each two pairs hold both orders; a seed repeats its order and another seed changes it."""

    def order(seed: int) -> tuple[bool, ...]:
        settings = replace(FEW, least_pairs=20, most_pairs=20, seed=seed)
        runner = ScriptedRunner(lambda job, index: [1.0])
        return measure_pairs(*files, local, settings, runner=runner).baseline_first

    first = order(0)
    assert all(one != other for one, other in zip(first[::2], first[1::2], strict=True))
    assert first == order(0)
    assert len({order(seed) for seed in range(5)}) > 1
    assert len(set(first[::2])) == 2


def test_jobs_carry_target_settings_and_hash(files: tuple[Path, Path], local: Target) -> None:
    """Both models get the same job but for path and hash, as target and settings say."""
    runner = ScriptedRunner(lambda job, index: [1.0])
    measure_pairs(*files, local, FEW, runner=runner)

    dense, pruned = sorted(runner.jobs[:2], key=lambda job: job.model)
    assert (dense.threads, dense.batch, dense.runs, dense.seed) == (1, 1, 4, 0)
    # of the five bytes "dense", by coreutils' sha256sum
    assert dense.model_sha256 == "d6a98598212ed729f5b9a4d1b7ff4dcc1341bbfc740993325b9107298521422f"
    assert replace(pruned, model=dense.model, model_sha256=dense.model_sha256) == dense


def test_a_quiet_pilot_stops_at_the_least_and_a_noisy_one_at_the_most(
    files: tuple[Path, Path], local: Target
) -> None:
    """The spread of the pilot decides the number of pairs, between least and most."""
    rng = np.random.default_rng(0)
    quiet = ScriptedRunner(lambda job, index: [1.0])
    loud = ScriptedRunner(lambda job, index: [math.exp(rng.standard_normal())])

    assert len(measure_pairs(*files, local, FEW, runner=quiet).baseline) == FEW.least_pairs
    assert len(measure_pairs(*files, local, FEW, runner=loud).baseline) == FEW.most_pairs


def test_progress_counts_pairs_to_the_plan(files: tuple[Path, Path], local: Target) -> None:
    """Progress is called once a pair, ends at its plan, and the plan changes after the pilot."""
    calls: list[tuple[int, int]] = []
    rng = np.random.default_rng(0)
    runner = ScriptedRunner(lambda job, index: [math.exp(rng.standard_normal())])

    measure_pairs(
        *files, local, FEW, runner=runner, progress=lambda done, of: calls.append((done, of))
    )

    assert calls == [(1, 4), (2, 8), (3, 8), (4, 8), (5, 8), (6, 8), (7, 8), (8, 8)]


def test_a_model_against_itself_is_never_a_regression(
    files: tuple[Path, Path], local: Target
) -> None:
    """A/A: in 40 simulated measurements, no interval lies wholly beyond 5 %."""
    beyond = 0
    for seed in range(40):
        found = ratio(measure_pairs(*files, local, runner=ScriptedRunner(noisy(seed, 1.0))))
        beyond += found.high < 1 / 1.05 or found.low > 1.05

    assert beyond == 0


def test_ten_percent_slower_is_always_seen(files: tuple[Path, Path], local: Target) -> None:
    """+10 %: in 40 simulated measurements, every interval lies wholly below a ratio of 1."""
    seen = 0
    for seed in range(40):
        found = ratio(measure_pairs(*files, local, runner=ScriptedRunner(noisy(seed, 1.1))))
        seen += found.high < 1.0

    assert seen == 40


def test_the_interval_covers_the_truth_as_often_as_it_claims(
    files: tuple[Path, Path], local: Target
) -> None:
    """Sizing from the pilot keeps the 95 % interval honest: 180 or more of 200 hold the truth."""
    settings = Settings(runs=1, least_runs=1, half_width=0.05)
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        runner = ScriptedRunner(
            lambda job, index, rng=rng: [
                (2.0 if is_dense(job) else 1.0) * math.exp(0.05 * rng.standard_normal())
            ]
        )
        found = ratio(measure_pairs(*files, local, settings, runner=runner))
        covered += found.low <= 2.0 <= found.high

    assert 180 <= covered < 200


class _Interrupted:
    def run(self, job: Job) -> Samples:
        raise KeyboardInterrupt


def test_an_interrupt_comes_through(files: tuple[Path, Path], local: Target) -> None:
    """Ctrl-C during a job ends the measurement as KeyboardInterrupt, nothing swallows it."""
    with pytest.raises(KeyboardInterrupt):
        measure_pairs(*files, local, FEW, runner=_Interrupted())


def test_a_missing_model_is_refused_before_anything_runs(tmp_path: Path, local: Target) -> None:
    """A path without a file is a UsageError that names it; no job is started."""
    runner = ScriptedRunner(lambda job, index: [1.0])

    with pytest.raises(UsageError, match=r"no\.onnx: expected a readable ONNX file"):
        measure_pairs(tmp_path / "no.onnx", tmp_path / "no.onnx", local, runner=runner)
    assert runner.jobs == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"status": "facts", "sources": ("a",)}, "its profile holds facts only"),
        ({"status": "emulated", "sources": ("a",)}, "its profile holds an emulation only"),
    ],
)
def test_a_target_without_a_clock_gives_no_latency(
    files: tuple[Path, Path], local: Target, change: dict[str, object], expected: str
) -> None:
    """Facts and emulation never yield a latency as if it had been measured."""
    runner = ScriptedRunner(lambda job, index: [1.0])

    with pytest.raises(UsageError, match=expected):
        measure_pairs(*files, local.model_copy(update=change), runner=runner)


def test_only_the_cpu_provider_is_measured(files: tuple[Path, Path], local: Target) -> None:
    """A target for another provider is refused, not silently run on the CPU."""
    other = local.model_copy(update={"runtime": local.runtime.model_copy(update={"ep": "QNN"})})

    with pytest.raises(UsageError, match="it runs on QNN, and only the CPU provider"):
        measure_pairs(*files, other, runner=ScriptedRunner(lambda job, index: [1.0]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"runs": 0}, "at runs: expected at least 1, got 0"),
        ({"least_runs": 500}, "at least_runs: expected 1 to runs, got 500"),
        ({"pilot_pairs": 1}, "at pilot_pairs: expected at least 2, got 1"),
        ({"least_pairs": 3}, r"at least_pairs: expected 8 \(pilot_pairs\) to 60 \(most_pairs\)"),
        ({"confidence": 1.0}, "at confidence: expected 0.5 to below 1, got 1.0"),
    ],
)
def test_settings_are_checked_when_they_are_made(change: dict[str, float], expected: str) -> None:
    """No measurement starts with settings that cannot work."""
    with pytest.raises(UsageError, match=expected):
        replace(Settings(), **change)


def test_a_runner_that_fails_ends_the_measurement(files: tuple[Path, Path], local: Target) -> None:
    """What a runner raises is what the caller gets; half a pair is never returned."""

    def script(job: Job, index: int) -> list[float]:
        if index == 3:
            raise EnvironmentFailed("the board is gone")
        return [1.0]

    with pytest.raises(EnvironmentFailed, match="the board is gone"):
        measure_pairs(*files, local, FEW, runner=ScriptedRunner(script))
