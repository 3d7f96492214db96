"""A budget in time: which share of the units makes the model as fast as asked, by measurement.

Latency does not follow MACs (widths are processed in blocks), so candidates are exported and
timed beside the dense model. Latency does not depend on the weights' values: this happens once,
before anything is trained. Each measurement is written down before it is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgeprune.errors import UsageError
from edgeprune.exporting.onnx import export
from edgeprune.graph.module import CapturedModule
from edgeprune.measure.intervals import ratio
from edgeprune.measure.pairs import measure_pairs
from edgeprune.pipeline.goal import UNIT_ROUNDING, Goal, goal_of
from edgeprune.pipeline.preparation import Job, can_measure
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.round import request_of, scores_of
from edgeprune.pipeline.widths import wanted_plan
from edgeprune.pipeline.work import Work
from edgeprune.planning.plan import Plan
from edgeprune.surgery.forecast import forecast
from edgeprune.surgery.shrink import shrink

# The final measurement must show the speedup again: aim a little beyond it.
_MARGIN = 1.03
_GRID = 64
# Candidates whose MACs differ by less are not told apart by one measurement.
_CLOSE = 1.05


class Probe(BaseModel):
    """One candidate, measured: dense / candidate median latency with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_fraction: float
    macs: int
    ratio: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    keep_fraction: float
    macs: int
    plan: Plan


def find_goal(job: Job, work: Work, progress: Progress) -> Goal:
    """The recipe's budget as a goal; a speedup is searched for, all others are as they stand.

    Raises BudgetNotMet when the smallest model is not fast enough, UsageError when the target
    cannot be measured here.
    """
    budget = job.recipe.prune.budget
    if budget.kind == "keep_fraction":
        return units_goal(job)
    held_by = request_of(job, 1.0).selection.in_force
    if budget.kind != "speedup":
        goal = goal_of(budget.kind, budget.value, job.dense, held_by=held_by)
        require_reachable(job, goal)
        return goal
    require_measured_here(job)
    progress.stage(f"find the width that is {budget.value:g} times as fast")
    goal = goal_of("speedup", budget.value, job.dense, units=1.0, held_by=held_by)
    units = 1.0 if budget.value <= 1.0 else _search(job, goal, work, progress)
    return replace(goal, units=units)


def require_measured_here(job: Job) -> None:
    """Raise UsageError where a budget in time is asked for on a target that is not this machine."""
    if not can_measure(job.target):
        raise UsageError(
            f"planning at prune.budget.speedup: expected a target that this machine can measure, "
            f"got '{job.target.name}' ({job.target.status}). Use macs_fraction or keep_fraction, "
            f"and check the build on the device.",
            where="prune.budget.speedup",
        )


def units_goal(job: Job) -> Goal:
    """A keep_fraction as a goal. Raises BudgetNotMet where the smallest widths leave more."""
    share, strict = job.recipe.prune.budget.value, job.recipe.prune.allocation == "global"
    held_by = request_of(job, share).selection.in_force
    goal = goal_of("keep_fraction", share, job.dense, units=share, strict=strict, held_by=held_by)
    require_reachable(job, goal)
    return goal


def require_reachable(job: Job, goal: Goal) -> None:
    """Raise BudgetNotMet, before any training, where the smallest widths leave more than asked.

    Where no unit can be removed at all, the verdict on a keep_fraction says so.
    """
    scores = scores_of(job, job.dense, 0)
    if goal.units is None:
        goal.keep_fraction(
            1.0,
            job.dense,
            lambda share: wanted_plan(job.dense, None, scores, request_of(job, share)),
        )
        return
    smallest = wanted_plan(job.dense, None, scores, request_of(job, 1 / _GRID**2))
    wanted = wanted_plan(job.dense, None, scores, request_of(job, goal.value))
    if goal.strict and smallest.axes and smallest.unit_keep_fraction > goal.value + UNIT_ROUNDING:
        raise goal.missed(smallest.unit_keep_fraction)
    at_the_end = wanted.axes and wanted.unit_keep_fraction <= smallest.unit_keep_fraction
    if at_the_end and wanted.unit_keep_fraction > goal.value + UNIT_ROUNDING:
        raise goal.missed(wanted.unit_keep_fraction)


def _search(job: Job, goal: Goal, work: Work, progress: Progress) -> float:
    """Largest candidate whose lower bound meets the speedup: bisection led by a power law."""
    need = goal.value * _MARGIN
    candidates = _candidates(job)
    if not candidates:
        raise goal.missed(1.0)
    slow, fast = -1, len(candidates)  # known to be too slow; known to be fast enough
    guess = _index_for(candidates, goal.dense.macs / goal.value, slow, fast)
    best = 1.0
    while slow + 1 < fast:
        bracketed = slow >= 0 and fast < len(candidates)
        if bracketed and candidates[slow].macs < _CLOSE * candidates[fast].macs:
            break
        probe = _probe(job, candidates[guess], work, progress)
        best = max(best, probe.ratio)
        slow, fast = (slow, guess) if probe.low >= need else (guess, fast)
        guess = _index_for(candidates, _macs_for(goal, probe, need), slow, fast)
    if fast == len(candidates):
        raise goal.missed(best)
    return candidates[fast].keep_fraction


def _candidates(job: Job) -> list[_Candidate]:
    """Distinct plans on a grid of shares, by the dense model's scores; the largest first."""
    scores = scores_of(job, job.dense, 0)
    found: dict[str, _Candidate] = {}
    for index in range(_GRID, 0, -1):  # the first one removes what has a share of its own
        share = index / _GRID
        plan = wanted_plan(job.dense, None, scores, request_of(job, share))
        if plan.axes:
            macs = forecast(job.dense, plan).macs
            found.setdefault(
                plan.fingerprint, _Candidate(keep_fraction=share, macs=macs, plan=plan)
            )
    return sorted(found.values(), key=lambda candidate: -candidate.macs)


def _macs_for(goal: Goal, probe: Probe, need: float) -> float:
    """MACs at which speedup = (dense MACs / MACs)^p reaches `need`, p from the probe."""
    removed = math.log(goal.dense.macs / max(1, probe.macs))
    power = max(math.log(max(probe.low, 1.01)) / max(removed, 1e-9), 0.05)
    return goal.dense.macs * math.exp(-math.log(need) / power)


def _index_for(candidates: list[_Candidate], macs: float, slow: int, fast: int) -> int:
    """The largest candidate of at most `macs`, strictly between the two bounds."""
    index = next((i for i, c in enumerate(candidates) if c.macs <= macs), len(candidates) - 1)
    return max(slow + 1, min(index, fast - 1))


def _probe(job: Job, candidate: _Candidate, work: Work, progress: Progress) -> Probe:
    """The candidate's measurement: from the journal, or taken and written there."""
    name = f"probe {candidate.keep_fraction:g}"
    probe = work.journal.find(name, Probe)
    if probe is None:
        probe = _measured(job, candidate, work, progress)
        work.journal.add(name, Probe, probe)
    progress.note(
        f"keep_fraction {probe.keep_fraction:g}: {probe.ratio:.2f} times as fast "
        f"[{probe.low:.2f}, {probe.high:.2f}] with {probe.macs:,} MACs"
    )
    return probe


def _measured(job: Job, candidate: _Candidate, work: Work, progress: Progress) -> Probe:
    dense, probe = work.folder / "dense.onnx", work.folder / "probe.onnx"
    _export(job, job.dense.captured.module, dense)
    _export(job, shrink(job.dense, candidate.plan), probe)
    found = ratio(
        measure_pairs(
            dense,
            probe,
            job.target,
            job.measuring,
            progress=lambda done, total: progress.step(done, total, "pairs"),
        )
    )
    return Probe(
        keep_fraction=candidate.keep_fraction,
        macs=candidate.macs,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        pairs=found.pairs,
    )


def _export(job: Job, module: CapturedModule, path: Path) -> None:
    captured = job.dense.captured
    export(
        module,
        path,
        captured.args,
        captured.kwargs,
        opset=job.recipe.export.opset,
        dynamic_batch=captured.dynamic_batch,
    )
