"""A run that is only thought through: what would go, in which steps, and about how long it takes.

The model and the data are loaded, analyzed and planned as a run does at its start, and a few
training steps on a copy are timed. Nothing is written, trained or delivered.
"""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from edgeprune.measure.settings import Settings as Measuring
from edgeprune.pipeline.goal import Goal, goal_of
from edgeprune.pipeline.preparation import Job, can_measure, chosen_target, prepare
from edgeprune.pipeline.progress import Progress, Silent
from edgeprune.pipeline.round import (
    reanalyzed,
    recovery_settings,
    request_of,
    scores_of,
    validated,
)
from edgeprune.pipeline.seeding import seeded
from edgeprune.pipeline.speed import require_reachable
from edgeprune.pipeline.widths import wanted_plan
from edgeprune.planning.cost import Cost
from edgeprune.planning.plan import Plan
from edgeprune.recipe.data import Batch, Split
from edgeprune.recipe.schema import Recipe
from edgeprune.recover.finetune import finetune
from edgeprune.recover.schedule import step_count
from edgeprune.surgery.forecast import forecast

_TRIAL_STEPS = 4
# A step costs a pass of the student, about two of its backward, and one of the teacher.
_STUDENT_SHARE = 0.75
# Analysis, proof and reading back what was written, in passes of the analysis.
_ANALYSES_A_ROUND = 4
# Two exports to ONNX and the proof of the whole, likewise.
_ANALYSES_AT_THE_END = 8
_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRound:
    """A round as it would go if the guard refuses none; shares of the dense model, 0-1."""

    number: int
    unit_keep_fraction: float
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """What a run would do. Times in seconds are estimates from a few timed steps."""

    model: str
    target: str
    dense: Cost
    dense_accuracy: float | None
    rounds: tuple[PlannedRound, ...]
    plan: Plan
    pins: int
    notes: tuple[str, ...]
    training_seconds: float
    checking_seconds: float
    measuring_seconds: float
    peak_memory_bytes: int

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.training_seconds + self.checking_seconds + self.measuring_seconds


def dry_run(
    recipe: Recipe, *, target: str | None = None, progress: Progress | None = None
) -> Outlook:
    """Think a recipe through. Raises what the start of a run raises, BudgetNotMet included."""
    progress = progress or Silent()
    with seeded(recipe.prune.seed):
        job = prepare(recipe, chosen_target(recipe, target), None, progress)
        progress.stage("plan")
        goal, notes = _goal(job)
        rounds, plan = _rounds(job, goal)
        progress.stage("time a few steps")
        training = _training_seconds(job, goal, rounds)
        checking = _checking_seconds(job, len(rounds))
    return Outlook(
        model=job.model_name,
        target=job.target.name,
        dense=goal.dense,
        dense_accuracy=job.dense_accuracy,
        rounds=rounds,
        plan=plan,
        pins=len(job.dense.pins),
        notes=notes,
        training_seconds=training,
        checking_seconds=checking,
        measuring_seconds=_measuring_seconds(job.measuring) if can_measure(job.target) else 0.0,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _goal(job: Job) -> tuple[Goal, tuple[str, ...]]:
    """The budget; a speedup, which a run measures, stands for the MACs that it would take."""
    budget = job.recipe.prune.budget
    if budget.kind == "keep_fraction":
        goal = goal_of(budget.kind, budget.value, job.dense, units=budget.value)
        require_reachable(job, goal)
        return goal, ()
    if budget.kind == "speedup":
        note = (
            f"speedup {budget.value:g} is found by measuring candidates; shown are the widths that "
            f"it takes if latency falls with the multiply-accumulates"
        )
        return goal_of("macs_fraction", 1 / budget.value, job.dense, units=None), (note,)
    return goal_of(budget.kind, budget.value, job.dense, units=None), ()


def _rounds(job: Job, goal: Goal) -> tuple[tuple[PlannedRound, ...], Plan]:
    """Each round's widths by the dense model's scores, and the last one's plan."""
    scores = scores_of(job, job.dense, 1)

    def planner(share: float) -> Plan:
        return wanted_plan(job.dense, None, scores, request_of(job, share))

    found = []
    total = job.recipe.prune.rounds
    for number in range(1, total + 1):
        position = float(Fraction(number, total))
        plan = planner(goal.keep_fraction(position, job.dense, planner))
        found.append(
            PlannedRound(
                number=number,
                unit_keep_fraction=plan.unit_keep_fraction,
                cost=forecast(job.dense, plan),
            )
        )
    return tuple(found), plan


def _training_seconds(job: Job, goal: Goal, rounds: tuple[PlannedRound, ...]) -> float:
    """All epochs, from a few timed steps of the dense model; smaller students take less."""
    recover = job.recipe.recover
    if recover.epochs == 0 and recover.final_epochs == 0:
        return 0.0
    student, teacher = copy.deepcopy(job.dense.captured.module), job.dense.captured.module
    settings = recovery_settings(job, 1.0, 0)
    finetune(student, teacher, _First(job.data.train, 1), settings, job.data.loss)  # warms up
    few = _First(job.data.train, _TRIAL_STEPS)
    done = finetune(student, teacher, few, settings, job.data.loss)
    a_step = done.seconds / max(1, done.steps)
    steps = step_count(job.data.train, 1.0)
    shares = [row.cost.macs / max(1, goal.dense.macs) for row in rounds]
    passes = [(share, recover.epochs) for share in shares] + [(shares[-1], recover.final_epochs)]
    teaching = 1 - _STUDENT_SHARE
    return sum(
        epochs * steps * a_step * (teaching + _STUDENT_SHARE * share) for share, epochs in passes
    )


class _First:
    """The first batches of a split, re-iterable."""

    def __init__(self, split: Split, count: int) -> None:
        self._split, self._count = split, count

    def __iter__(self) -> Iterator[Batch]:
        return islice(iter(self._split), self._count)


def _checking_seconds(job: Job, rounds: int) -> float:
    """Everything between the epochs, from one analysis and one validation of the dense model."""
    start = time.perf_counter()
    reanalyzed(job, job.dense.captured.module)
    analyzed = time.perf_counter()
    validated(job, job.dense.captured.module)
    validation = time.perf_counter() - analyzed
    analysis = analyzed - start
    return (
        rounds * (_ANALYSES_A_ROUND * analysis + 3 * validation) + _ANALYSES_AT_THE_END * analysis
    )


def _measuring_seconds(settings: Measuring) -> float:
    """Pairs of fresh processes: about half a second each to start, then the timed runs."""
    return 2 * settings.most_pairs * (0.5 + settings.seconds)
