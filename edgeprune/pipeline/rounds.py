"""The rounds: steps on the way to the budget, kept or undone, and written down as they end."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from pydantic import BaseModel, ConfigDict

from edgeprune.pipeline.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from edgeprune.pipeline.goal import Goal
from edgeprune.pipeline.preparation import Job, shown
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.round import (
    Candidate,
    State,
    Step,
    known,
    one_round,
    reanalyzed,
    recover_,
    request_of,
    scores_of,
    validated,
)
from edgeprune.pipeline.seeding import seeded
from edgeprune.pipeline.widths import empty_plan, wanted_plan
from edgeprune.pipeline.work import Work
from edgeprune.planning.plan import Plan
from edgeprune.release.report import FinalTraining, Round

MOST_REFUSALS = 3
MOST_REPEATS = 4
"""Halvings in a row that leave the units of a refused round: then there is nothing between."""


class _Done(BaseModel):
    """The journal's line of a round: what was found, where its model lies, what it planned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: Round
    fingerprint: str | None
    checkpoint: Checkpoint | None


class _Trained(BaseModel):
    """The journal's line of the final training; no checkpoint where it was undone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: float | None
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruning:
    """What the rounds gave: the last accepted model, all rounds, and why they ended early.

    `asked` is the largest share of units (0-1) that meets a keep_fraction, None for other
    budgets. `final` tells of the final training, None where there was none.
    """

    goal: Goal
    state: State
    plan: Plan
    rounds: tuple[Round, ...]
    final: FinalTraining | None
    asked: float | None
    stopped: str | None


@dataclass(slots=True, kw_only=True, eq=False)
class _Way:
    """Where the rounds are: position and step as shares of the way to the budget.

    `last` is the newest accepted checkpoint with its accuracy, `state` its model once it is read:
    replaying a journal reads one model, not all.
    """

    state: State | None
    step: Fraction
    last: tuple[Checkpoint, float | None] | None = None
    position: Fraction = Fraction(0)
    refused: dict[str, str] = field(default_factory=dict)
    refusals: int = 0
    repeats: int = 0
    stopped: str | None = None


def prune_in_rounds(job: Job, goal: Goal, work: Work, progress: Progress) -> Pruning:
    """All rounds: until the budget is met, or the guard has refused three.

    A refused round leaves no trace but its record, and the next one goes half as far; where widths
    are rounded so coarsely that this is the same again, half as far once more. Rounds that
    the journal already has are not done again. Raises ProofFailed and BudgetNotMet.
    """
    way = _Way(
        state=State(analysis=job.dense, plan=None, accuracy=job.dense_accuracy),
        step=Fraction(1, job.recipe.prune.rounds),
    )
    rounds: list[Round] = []
    while way.position < 1 and way.stopped is None:
        ahead = min(Fraction(1), way.position + way.step)
        done = _round(job, goal, way, len(rounds) + 1, ahead, work, progress)
        rounds.append(done.record)
        _move(way, done, ahead)
    state, final = _reached(job, way, work), None
    if job.recipe.recover.final_epochs > 0 and state.plan is not None:
        state, final = _train_on(job, state, len(rounds) + 1, work, progress)
    return Pruning(
        goal=goal,
        state=state,
        plan=state.plan or empty_plan(job.dense, request_of(job, 1.0), job.recipe.prune.criterion),
        rounds=tuple(rounds),
        final=final,
        asked=_asked(job, goal),
        stopped=way.stopped,
    )


def _round(
    job: Job, goal: Goal, way: _Way, number: int, ahead: Fraction, work: Work, progress: Progress
) -> _Done:
    """The round's line of the journal: read, or carried out and written."""
    name = f"round {number}"
    progress.stage(f"{name}, to {float(ahead):.0%} of the way")
    done = work.journal.find(name, _Done)
    if done is not None:
        progress.note(f"{name}: {done.record.why} (done before)")
        return done
    state = _reached(job, way, work)
    with seeded(job.seed + number, job.splits):
        step = Step(number=number, position=float(ahead), refused=way.refused)
        candidate = one_round(job, goal, state, step, progress)
    done = _written(work, f"round-{number:02d}", candidate)
    work.journal.add(name, _Done, done)
    progress.note(f"{name}: {done.record.why}")
    return done


def _written(work: Work, name: str, candidate: Candidate) -> _Done:
    """The candidate's line; an accepted model is on disk before it is spoken of."""
    checkpoint = None
    if candidate.record.accepted and candidate.plan is not None and candidate.module is not None:
        checkpoint = write_checkpoint(work.steps, name, candidate.plan, candidate.module)
    fingerprint = None if candidate.plan is None else candidate.plan.fingerprint
    return _Done(record=candidate.record, fingerprint=fingerprint, checkpoint=checkpoint)


def _move(way: _Way, done: _Done, ahead: Fraction) -> None:
    """Go on from an accepted round; halve the step, or stop, after a refused one.

    Half a step that leaves the units of a refused round was not tried, so it is no refusal.
    """
    if done.record.accepted:
        way.position = ahead
        if done.checkpoint is not None:
            way.last, way.state = (done.checkpoint, done.record.accuracy.recovered), None
            way.refused = {}
        return
    way.step /= 2
    if done.record.proof is None:
        way.repeats += 1
        if way.repeats == MOST_REPEATS:
            way.stopped = (
                f"no smaller step leaves other units than a round that was refused, "
                f"{float(way.position):.0%} of the way was accepted ({done.record.why})"
            )
        return
    way.refusals += 1
    way.repeats = 0
    if done.fingerprint is not None:
        way.refused.setdefault(done.fingerprint, done.record.why)
    if way.refusals == MOST_REFUSALS:
        way.stopped = (
            f"round {done.record.round} was the third to be refused, {float(way.position):.0%} of "
            f"the way was accepted ({done.record.why})"
        )


def _reached(job: Job, way: _Way, work: Work) -> State:
    """The last accepted model, read from its checkpoint when it is first asked for."""
    if way.state is None and way.last is not None:
        checkpoint, accuracy = way.last
        way.state = _restored(job, checkpoint, accuracy, work)
    return way.state or State(analysis=job.dense, plan=None, accuracy=job.dense_accuracy)


def _restored(job: Job, checkpoint: Checkpoint, accuracy: float | None, work: Work) -> State:
    plan, module = read_checkpoint(work.steps, checkpoint, job.dense)
    return State(analysis=reanalyzed(job, module), plan=plan, accuracy=accuracy)


def _train_on(
    job: Job, state: State, number: int, work: Work, progress: Progress
) -> tuple[State, FinalTraining]:
    """The final epochs; undone where they make validation worse."""
    progress.stage("final training")
    done = work.journal.find("final training", _Trained)
    if done is None:
        done = _finally(job, state, number, work, progress)
        work.journal.add("final training", _Trained, done)
    found = FinalTraining(accuracy=done.accuracy, accepted=done.checkpoint is not None)
    if done.checkpoint is None:
        progress.note(
            f"final training undone: {job.metric_word} {shown(done.accuracy)} on validation, "
            f"{shown(state.accuracy)} before it"
        )
        return state, found
    progress.note(f"final training: {job.metric_word} {shown(done.accuracy)} on validation")
    return _restored(job, done.checkpoint, done.accuracy, work), found


def _finally(job: Job, state: State, number: int, work: Work, progress: Progress) -> _Trained:
    with seeded(job.seed + number, job.splits):
        module = reanalyzed(job, state.module).captured.module
        recover_(job, module, job.recipe.recover.final_epochs, number, progress)
        accuracy = validated(job, module)
    no_worse = accuracy is None or state.accuracy is None or accuracy >= state.accuracy  # or NaN
    accuracy = known(accuracy)
    if not no_worse or state.plan is None:
        return _Trained(accuracy=accuracy, checkpoint=None)
    checkpoint = write_checkpoint(work.steps, "final", state.plan, module)
    return _Trained(accuracy=accuracy, checkpoint=checkpoint)


def _asked(job: Job, goal: Goal) -> float | None:
    """The most units (share) that meet a keep_fraction: rounded widths may leave more than it."""
    if goal.kind != "keep_fraction":
        return None
    if goal.strict:
        return goal.value
    request = request_of(job, goal.value)
    rounded = wanted_plan(job.dense, None, scores_of(job, job.dense, 0), request)
    return max(goal.value, rounded.unit_keep_fraction)
