"""A run that is only thought through: what would go, in which steps, and about how long it takes.

The model and the data are loaded, analyzed and planned as a run does at its start; then each step
of a run is carried out once, with a few steps instead of epochs. What was made is thrown away.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from fractions import Fraction

from edgeprune.errors import BudgetNotMet
from edgeprune.pipeline.goal import Goal, goal_of
from edgeprune.pipeline.preparation import Job, chosen_target, prepare
from edgeprune.pipeline.progress import Progress, Silent
from edgeprune.pipeline.rehearsal import Rehearsal, rehearse
from edgeprune.pipeline.round import request_of, scores_of
from edgeprune.pipeline.seeding import seeded
from edgeprune.pipeline.speed import require_measured_here, require_reachable, units_goal
from edgeprune.pipeline.widths import wanted_plan
from edgeprune.planning.cost import Cost
from edgeprune.planning.plan import Plan
from edgeprune.recipe.schema import Recipe
from edgeprune.recover.schedule import step_count
from edgeprune.scoring.scores import Scores
from edgeprune.surgery.forecast import forecast

# A step costs a pass of the student, about two of its backward, and one of the teacher.
_STUDENT_SHARE = 0.75
# A search for a speedup is a bisection of at most 63 candidates, begun near its end.
_CANDIDATES = (1, 6)
# A share of the units that every group rounds up to its smallest width.
_LEAST = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRound:
    """A round as it would go if the guard refuses none; shares of the dense model, 0-1."""

    number: int
    unit_keep_fraction: float
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Seconds. A measurement ends when its interval is narrow: the machine's noise decides."""

    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """What a run would do.

    Times are estimates in seconds, from steps that were carried out once. peak_memory_bytes: the
    most that this process held in all of them, and a process that measures latency beside it.
    """

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
    measuring_seconds: Span
    peak_memory_bytes: int

    @property
    def seconds(self) -> Span:
        """The whole run."""
        rest = self.training_seconds + self.checking_seconds
        return Span(
            least=rest + self.measuring_seconds.least, most=rest + self.measuring_seconds.most
        )


def dry_run(
    recipe: Recipe, *, target: str | None = None, progress: Progress | None = None
) -> Outlook:
    """Think a recipe through. Raises what the start of a run raises, BudgetNotMet included."""
    progress = progress or Silent()
    with seeded(recipe.prune.seed):
        start = time.perf_counter()
        job = prepare(recipe, chosen_target(recipe, target), None, progress)
        prepared = time.perf_counter() - start
        progress.stage("plan")
        goal, notes = _goal(job)
        start = time.perf_counter()
        scores = scores_of(job, job.dense, 1)
        scoring = time.perf_counter() - start
        plans = _plans(job, goal, scores)
        costs = [forecast(job.dense, plan) for plan in plans]
        tried = rehearse(job, plans[0], progress)
    return Outlook(
        model=job.model_name,
        target=job.target.name,
        dense=goal.dense,
        dense_accuracy=job.dense_accuracy,
        rounds=tuple(
            PlannedRound(number=number, unit_keep_fraction=plan.unit_keep_fraction, cost=figures)
            for number, (plan, figures) in enumerate(zip(plans, costs, strict=True), start=1)
        ),
        plan=plans[-1],
        pins=len(job.dense.pins),
        notes=notes,
        training_seconds=_training_seconds(job, goal.dense, costs, tried),
        checking_seconds=prepared + _checking_seconds(len(plans), tried, scoring),
        measuring_seconds=_measuring_seconds(job, tried),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        + tried.timed_process_bytes,
    )


def _goal(job: Job) -> tuple[Goal, tuple[str, ...]]:
    """The budget; a speedup, which a run measures, stands for the MACs that it would take."""
    budget = job.recipe.prune.budget
    if budget.kind == "keep_fraction":
        return units_goal(job), ()
    held_by = request_of(job, 1.0).selection.in_force
    if budget.kind != "speedup":
        return goal_of(budget.kind, budget.value, job.dense, held_by=held_by), ()
    require_measured_here(job)
    note = (
        f"speedup {budget.value:g} is found by measuring candidates; shown are the widths that "
        f"it takes if latency falls with the multiply-accumulates"
    )
    goal = goal_of("macs_fraction", 1 / budget.value, job.dense, held_by=held_by)
    try:
        require_reachable(job, goal)
    except BudgetNotMet:
        beyond = "beyond the smallest widths, which are shown; the run measures what they reach"
        return goal_of("speedup", budget.value, job.dense, units=_LEAST), (note, beyond)
    return goal, (note,)


def _plans(job: Job, goal: Goal, scores: Scores) -> list[Plan]:
    """What each round leaves by the dense model's scores."""

    def planned(position: float) -> Plan:
        def planner(share: float) -> Plan:
            return wanted_plan(job.dense, None, scores, request_of(job, share, position))

        return planner(goal.keep_fraction(position, job.dense, planner))

    total = job.recipe.prune.rounds
    return [planned(float(Fraction(number, total))) for number in range(1, total + 1)]


def _training_seconds(job: Job, dense: Cost, rounds: list[Cost], tried: Rehearsal) -> float:
    """All epochs; the student that was timed is the first round's, later ones take less."""
    recover = job.recipe.recover
    shares = [row.macs / max(1, dense.macs) for row in rounds]
    passes = [(share, recover.epochs) for share in shares] + [(shares[-1], recover.final_epochs)]
    a_pass = step_count(job.data.train, 1.0) * tried.training_step
    return sum(epochs * a_pass * _step(share) / _step(shares[0]) for share, epochs in passes)


def _step(share: float) -> float:
    """The time of a step as a share of the dense student's, by the student's MACs."""
    return (1 - _STUDENT_SHARE) + _STUDENT_SHARE * share


def _checking_seconds(rounds: int, tried: Rehearsal, scoring: float) -> float:
    """Everything between the epochs and after them, as one_round, _finally and deliver do it."""
    a_round = tried.removal + tried.repair + 3 * tried.validation + 2 * tried.analysis + scoring
    the_end = tried.removal + tried.validation + 2 * tried.analysis + 2 * tried.export
    return rounds * a_round + the_end


def _measuring_seconds(job: Job, tried: Rehearsal) -> Span:
    """Pairs of fresh processes, as slow as the dense one; also of the candidates of a speedup."""
    settings, pair = job.measuring, 2 * tried.timed_process
    least, most = settings.least_pairs * pair, settings.most_pairs * pair
    if job.recipe.prune.budget.kind != "speedup":
        return Span(least=least, most=most)
    few, many = _CANDIDATES
    exports = 2 * tried.export
    return Span(
        least=least + few * (least + exports),
        most=most + many * (most + exports),
    )
