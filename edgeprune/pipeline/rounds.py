"""The rounds: score, plan, shrink, prove, recover, judge on validation; keep or undo."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.graph.module import CapturedModule
from edgeprune.pipeline.preparation import Job, shown, validation_accuracy
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.widths import empty_plan, next_plan, share_after, whole_plan
from edgeprune.planning.allocate import Request
from edgeprune.planning.cost import cost
from edgeprune.planning.plan import Plan
from edgeprune.recover.finetune import Settings, finetune
from edgeprune.release.report import Round, RoundAccuracy, RoundProof
from edgeprune.scoring.scores import score
from edgeprune.surgery.prove import Proof, prove
from edgeprune.surgery.shrink import shrink

# 0.91 - 0.9 is 0.010000000000000009: a drop equal to the limit is not more than the limit.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """A model that the guard accepted: its analysis, what was removed so far, its accuracy."""

    analysis: Analysis
    plan: Plan | None
    accuracy: float | None

    @property
    def module(self) -> CapturedModule:
        """The model itself."""
        return self.analysis.captured.module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruning:
    """What the rounds gave: the last accepted model, all rounds, and why they ended early.

    `asked` is the share of units that the budget asks for with widths rounded (0-1).
    """

    state: State
    plan: Plan
    rounds: tuple[Round, ...]
    asked: float
    stopped: str | None


def prune_in_rounds(job: Job, progress: Progress) -> Pruning:
    """All rounds, until the budget is met or the guard refuses one. Raises ProofFailed."""
    state = State(analysis=job.dense, plan=None, accuracy=job.dense_accuracy)
    rounds: list[Round] = []
    stopped = None
    total = job.recipe.prune.rounds
    for number in range(1, total + 1):
        progress.stage(f"round {number} of {total}")
        candidate, record = _one_round(job, state, number, progress)
        rounds.append(record)
        progress.note(f"round {number}: {record.why}")
        if not record.accepted:
            stopped = f"round {number} of {total} was refused: {record.why}"
            break
        state = candidate
    if job.recipe.recover.final_epochs > 0 and state.plan is not None:
        state = _train_on(job, state, progress)
    return Pruning(
        state=state,
        plan=state.plan or empty_plan(job.dense, _request(job, 1.0), job.recipe.prune.criterion),
        rounds=tuple(rounds),
        asked=_asked(job),
        stopped=stopped,
    )


def _one_round(job: Job, state: State, number: int, progress: Progress) -> tuple[State, Round]:
    """The model that the round makes, and its record; `accepted` says which model goes on."""
    start = time.perf_counter()
    criterion = job.recipe.prune.criterion
    request = _request(job, share_after(number, job.recipe.prune.rounds, _budget(job)))
    scores = score(state.analysis, criterion, seed=job.seed)
    step = next_plan(job.dense, state.analysis, state.plan, scores, request)
    kept = 1.0 if state.plan is None else state.plan.unit_keep_fraction
    if not step.axes:
        why = f"accepted, nothing to remove at this step with widths in multiples of {job.multiple}"
        return state, _record(number, criterion, kept, True, why, start)
    whole = whole_plan(job.dense, state.plan, step, request.keep_fraction)
    small = shrink(state.analysis, step)
    proof = prove(state.analysis, step, small, seed=job.seed).require()
    removed = _validated(job, small)
    _recover_(job, small, job.recipe.recover.epochs, number, progress)
    after = _analyzed(job, small)
    recovered = _validated(job, small)
    accepted, why = _judge(job, recovered)
    figures = cost(after.captured)
    record = _record(number, criterion, whole.unit_keep_fraction, accepted, why, start).model_copy(
        update={
            "accuracy": RoundAccuracy(removed=removed, recovered=recovered),
            "proof": proof_row(proof),
            "params": figures.params,
            "macs": figures.macs,
        }
    )
    return State(analysis=after, plan=whole, accuracy=recovered), record


def _record(
    number: int, criterion: str, keep_fraction: float, accepted: bool, why: str, start: float
) -> Round:
    return Round(
        round=number,
        criterion=criterion,
        keep_fraction=keep_fraction,
        accepted=accepted,
        why=why,
        seconds=time.perf_counter() - start,
    )


def proof_row(proof: Proof) -> RoundProof:
    """A proof as the report has it; `control` is the least error of a sabotaged comparison."""
    return RoundProof(
        error=proof.error,
        change=proof.change,
        tolerance=proof.tolerance,
        precision=proof.precision,
        control=min((trial.error for trial in proof.sabotages), default=None),
        weak=proof.outcome != "proved",
    )


def recovery_settings(job: Job, epochs: float, number: int) -> Settings:
    """The recipe's way to train, with a seed of its own for every round."""
    recover = job.recipe.recover
    return replace(
        Settings(),
        epochs=epochs,
        learning_rate=recover.learning_rate,
        weight_decay=recover.weight_decay,
        distillation=recover.distillation,
        temperature=recover.temperature,
        seed=job.seed + number,
    )


def _recover_(
    job: Job, module: CapturedModule, epochs: float, number: int, progress: Progress
) -> None:
    """Train in place, with the dense model as teacher."""
    if epochs > 0:
        teacher = job.dense.captured.module
        settings = recovery_settings(job, epochs, number)
        finetune(module, teacher, job.data.train, settings, job.data.loss, progress)


def _train_on(job: Job, state: State, progress: Progress) -> State:
    """The final epochs; undone where they make validation worse."""
    progress.stage("final training")
    number = job.recipe.prune.rounds + 1
    trained = _analyzed(job, state.module)
    _recover_(job, trained.captured.module, job.recipe.recover.final_epochs, number, progress)
    accuracy = _validated(job, trained.captured.module)
    if accuracy is not None and state.accuracy is not None and accuracy < state.accuracy:
        progress.note(
            f"final training undone: accuracy {shown(accuracy)} on validation, "
            f"{shown(state.accuracy)} before it"
        )
        return state
    progress.note(f"final training: accuracy {shown(accuracy)} on validation")
    return State(analysis=trained, plan=state.plan, accuracy=accuracy)


def _judge(job: Job, recovered: float | None) -> tuple[bool, str]:
    """The guard: whether validation accuracy lies within the allowed drop below dense."""
    if recovered is None or job.dense_accuracy is None:
        return True, "accepted, the guard cannot judge: validation has no labels"
    limit = job.recipe.prune.max_accuracy_drop
    drop = job.dense_accuracy - recovered
    figures = f"accuracy {recovered:.4f} on validation, {drop:.4f} below dense"
    if drop <= limit + _ROUNDING:
        return True, f"accepted, {figures}"
    return False, f"undone, {figures}, more than max_accuracy_drop {limit:g}"


def _validated(job: Job, module: CapturedModule) -> float | None:
    return validation_accuracy(module, job.dense.captured.inputs, job.data)


def _analyzed(job: Job, module: CapturedModule) -> Analysis:
    """A fresh analysis, on a copy: metadata of before the surgery is never trusted."""
    captured = job.dense.captured
    return analyze(
        module,
        captured.args,
        captured.kwargs,
        dynamic_batch=captured.dynamic_batch,
        exact_only=job.recipe.prune.exact_only,
    )


def _budget(job: Job) -> float:
    return job.recipe.prune.budget.keep_fraction


def _request(job: Job, keep_fraction: float) -> Request:
    return Request(keep_fraction, job.recipe.prune.allocation, job.multiple)


def _asked(job: Job) -> float:
    """Share of units that stays when the budget is met in one step: rounding included."""
    scores = score(job.dense, job.recipe.prune.criterion, seed=job.seed)
    request = _request(job, _budget(job))
    return next_plan(job.dense, job.dense, None, scores, request).unit_keep_fraction
