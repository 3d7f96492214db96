"""Measure two models side by side: randomised, interleaved, as many pairs as they need."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.measure.here import why_not_here
from edgeprune.measure.intervals import pairs_needed
from edgeprune.measure.machine import MachineState, machine_state
from edgeprune.measure.result import file_sha256
from edgeprune.measure.samples import Job, PairedSamples, Samples
from edgeprune.measure.settings import Settings, settings_for
from edgeprune.measure.transport import Runner, find_runner
from edgeprune.targets import Target


def measure_pairs(
    baseline: Path,
    candidate: Path,
    target: Target,
    settings: Settings | None = None,
    *,
    runner: Runner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairedSamples:
    """Time two ONNX files on `target`, each in a fresh process per pair, and keep every sample.

    First a pilot; its spread decides how many pairs there are in all (`pairs_needed`), and its
    pairs count. `settings` default to the target's preset, `runner` to the target's transport.
    `progress(done, planned)` is called after every pair; `planned` may change once, after the
    pilot. A KeyboardInterrupt ends the running process and comes through.

    Raises UsageError for a model that is missing or refused, or a target that cannot give a
    latency, and EnvironmentFailed when a process dies, hangs or returns half a result.
    """
    require_measurable(target)
    settings = settings or settings_for(target)
    runner = runner or find_runner(target)
    jobs = (job_for(baseline, target, settings), job_for(candidate, target, settings))
    orders = _orders(random.Random(settings.seed))
    before = machine_state()

    done: list[_Pair] = []
    planned = settings.least_pairs
    while len(done) < planned:
        done.append(_run_pair(runner, jobs, baseline_first=next(orders)))
        if len(done) == settings.pilot_pairs:
            planned = pairs_needed(_paired(done, target, settings, before))
        if progress is not None:
            progress(len(done), planned)
    return _paired(done, target, settings, before)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    baseline: Samples
    candidate: Samples
    baseline_first: bool


def _run_pair(runner: Runner, jobs: tuple[Job, Job], *, baseline_first: bool) -> _Pair:
    baseline, candidate = jobs
    if baseline_first:
        first = runner.run(baseline)
        return _Pair(baseline=first, candidate=runner.run(candidate), baseline_first=True)
    first = runner.run(candidate)
    return _Pair(baseline=runner.run(baseline), candidate=first, baseline_first=False)


def _orders(rng: random.Random) -> Iterator[bool]:
    """Whether the baseline goes first, pair by pair: AB BA or BA AB, drawn for every two pairs.

    Blocks of two keep the order balanced at any even length, so that drift cancels.
    """
    while True:
        baseline_first = rng.random() < 0.5
        yield baseline_first
        yield not baseline_first


def _paired(
    done: list[_Pair], target: Target, settings: Settings, before: MachineState
) -> PairedSamples:
    return PairedSamples(
        baseline=tuple(pair.baseline for pair in done),
        candidate=tuple(pair.candidate for pair in done),
        baseline_first=tuple(pair.baseline_first for pair in done),
        settings=settings,
        threads=target.runtime.threads,
        batch=target.runtime.batch,
        before=before,
        after=machine_state(),
    )


def job_for(model: Path, target: Target, settings: Settings) -> Job:
    """The job of timing one file; its path is absolute, because a worker may run elsewhere."""
    try:
        digest = file_sha256(model)
    except OSError as error:
        raise UsageError(
            f"measuring cannot start at {model}: expected a readable ONNX file, "
            f"got {error.strerror}. Check the path.",
            where=str(model),
        ) from error
    return Job(
        model=str(model.absolute()),
        model_sha256=digest,
        threads=target.runtime.threads,
        batch=target.runtime.batch,
        warmup=settings.warmup,
        runs=settings.runs,
        least_runs=settings.least_runs,
        seconds=settings.seconds,
        seed=settings.seed,
        timeout_seconds=settings.timeout_seconds,
        session_options=target.runtime.session_options,
    )


def require_measurable(target: Target) -> None:
    """Only where a clock means something for the target, and only the CPU provider."""
    reason = why_not_here(target)
    if reason is not None:
        raise UsageError(
            f"measuring cannot start at target '{target.name}': expected a target that this "
            f"machine is, got one where {reason}. Measure on the device, or on 'local'.",
            where=target.name,
        )
