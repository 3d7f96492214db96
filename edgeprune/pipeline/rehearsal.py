"""The heavy steps of a run, each carried out once for its time and memory, and thrown away."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edgeprune.graph.module import CapturedModule
from edgeprune.measure.pairs import job_for
from edgeprune.measure.transport import find_runner
from edgeprune.pipeline.delivery import export_captured
from edgeprune.pipeline.preparation import Job, can_measure
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.round import reanalyzed, recovery_settings, repair_, validated
from edgeprune.planning.plan import Plan
from edgeprune.recipe.data import Batch, Split
from edgeprune.recover.finetune import finetune
from edgeprune.surgery.prove import prove
from edgeprune.surgery.shrink import shrink

_WARM_STEPS = 1
_TRIAL_STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """Seconds of each step, done once; 0 for what the recipe does not ask for.

    removal: shrinking the dense model by the plan and proving it. training_step: one step of the
    shrunk model, teacher included. export: the dense model to a checked ONNX file. timed_process:
    one process that times that file as a measurement does, `timed_process_bytes` its peak memory;
    0 where this machine is not the target.
    """

    removal: float
    repair: float
    training_step: float
    validation: float
    analysis: float
    export: float
    timed_process: float
    timed_process_bytes: int


def rehearse(job: Job, plan: Plan, progress: Progress) -> Rehearsal:
    """Do what a round does with `plan`, a plan on the dense model, but for whole epochs.

    All of it is alive at once as in a run, so that the peak memory of this process is that of a
    run afterwards. Raises what the steps of a run raise: ProofFailed, ModelNotSupported.
    """
    progress.stage("try each step once")
    start = time.perf_counter()
    small = job.dense.captured.module
    if plan.axes:
        small = shrink(job.dense, plan)
        prove(job.dense, plan, small, seed=job.seed).require()
    removed = time.perf_counter()
    if plan.axes:
        repair_(job, job.dense, plan, small, progress)
    repaired = time.perf_counter()
    validated(job, small)
    judged = time.perf_counter()
    captured = reanalyzed(job, small).captured  # a copy: training it leaves the dense model alone
    analyzed = time.perf_counter()
    step = _training_step(job, captured.module)
    trained = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"
        export_captured(job, job.dense.captured, path, ())
        exported = time.perf_counter()
        timed_process, timed_bytes = _timed(job, path)
    return Rehearsal(
        removal=removed - start,
        repair=repaired - removed,
        training_step=step,
        validation=judged - repaired,
        analysis=analyzed - judged,
        export=exported - trained,
        timed_process=timed_process,
        timed_process_bytes=timed_bytes,
    )


def _timed(job: Job, path: Path) -> tuple[float, int]:
    """Time the file in one fresh process: seconds of that process, bytes at its peak."""
    if not can_measure(job.target):
        return 0.0, 0
    start = time.perf_counter()
    samples = find_runner(job.target).run(job_for(path, job.target, job.measuring))
    return time.perf_counter() - start, round(samples.peak_rss_mib * 2**20)


def _training_step(job: Job, student: CapturedModule) -> float:
    """Seconds of a step after the first, which warms up; 0 where the recipe trains nothing."""
    recover = job.recipe.recover
    if recover.epochs == 0 and recover.final_epochs == 0:
        return 0.0
    teacher, settings = job.dense.captured.module, recovery_settings(job, 1.0, 0)
    finetune(student, teacher, _First(job.data.train, _WARM_STEPS), settings, job.data.loss)
    few = _First(job.data.train, _TRIAL_STEPS)
    done = finetune(student, teacher, few, settings, job.data.loss)
    return done.seconds / max(1, done.steps)


class _First:
    """The first batches of a split, re-iterable."""

    def __init__(self, split: Split, count: int) -> None:
        self._split, self._count = split, count

    def __iter__(self) -> Iterator[Batch]:
        return islice(iter(self._split), self._count)
