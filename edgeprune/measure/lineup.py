"""Measure any number of models side by side, one of them too, in fresh processes by turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.measure.intervals import needed_for_spread, percentile_ms
from edgeprune.measure.machine import MachineState, machine_state
from edgeprune.measure.pairs import job_for, require_measurable
from edgeprune.measure.samples import PairedSamples, Samples
from edgeprune.measure.settings import Settings, settings_for
from edgeprune.measure.transport import Runner, find_runner
from edgeprune.targets import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """Samples of every model: `samples[i][r]` is model i in round r.

    In each round every model ran once, in a drawn order, so that round r of any two is a pair.
    """

    models: tuple[Path, ...]
    samples: tuple[tuple[Samples, ...], ...]
    settings: Settings
    threads: int
    batch: int
    before: MachineState
    after: MachineState

    def pair(self, baseline: int | None, candidate: int) -> PairedSamples:
        """Two of the models as a pair; None as baseline: the candidate's latency alone."""
        return PairedSamples(
            baseline=() if baseline is None else self.samples[baseline],
            candidate=self.samples[candidate],
            baseline_first=(),
            settings=self.settings,
            threads=self.threads,
            batch=self.batch,
            before=self.before,
            after=self.after,
        )


def measure_lineup(
    models: Sequence[Path],
    target: Target,
    settings: Settings | None = None,
    *,
    runner: Runner | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Lineup:
    """Time ONNX files on `target`, each in a fresh process a round, and keep every sample.

    As in `measure_pairs`, a pilot's spread decides how many rounds there are: of the log ratio to
    the first model, the widest counts; for a single model, of its log latency.
    Raises UsageError and EnvironmentFailed as `measure_pairs` does.
    """
    require_measurable(target)
    settings = settings or settings_for(target)
    runner = runner or find_runner(target)
    jobs = [job_for(model, target, settings) for model in models]
    rng = random.Random(settings.seed)
    before = machine_state()
    done: list[list[Samples]] = [[] for _ in jobs]
    planned = settings.least_pairs
    while len(done[0]) < planned:
        order = list(range(len(jobs)))
        rng.shuffle(order)
        for index in order:
            done[index].append(runner.run(jobs[index]))
        if len(done[0]) == settings.pilot_pairs:
            planned = _planned(done, settings)
        if progress is not None:
            progress(len(done[0]), planned)
    return Lineup(
        models=tuple(models),
        samples=tuple(map(tuple, done)),
        settings=settings,
        threads=target.runtime.threads,
        batch=target.runtime.batch,
        before=before,
        after=machine_state(),
    )


def _planned(done: list[list[Samples]], settings: Settings) -> int:
    """Rounds that make every interval as narrow as the settings ask, by the pilot."""
    logs = np.log([[percentile_ms(samples) for samples in model] for model in done])
    rows = logs[1:] - logs[:1] if len(logs) > 1 else logs
    return max(needed_for_spread(float(np.std(row, ddof=1)), len(row), settings) for row in rows)
