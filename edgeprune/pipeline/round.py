"""One round: score, plan, shrink, prove, repair, recover, and judge on validation."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from edgeprune.errors import DataError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.graph.module import CapturedModule
from edgeprune.pipeline.goal import Goal
from edgeprune.pipeline.preparation import Job, validation_accuracy
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.seeding import seeded
from edgeprune.pipeline.widths import step_plan, wanted_plan, whole_plan
from edgeprune.planning.allocate import Request
from edgeprune.planning.cost import cost
from edgeprune.planning.plan import Plan
from edgeprune.planning.selection import Selection
from edgeprune.recipe.data import Batch, Split, batches_of
from edgeprune.recipe.feeding import batch_size
from edgeprune.recover.finetune import Settings, finetune
from edgeprune.release.report import Round, RoundAccuracy, RoundProof, RoundRepair
from edgeprune.scoring.scores import Scores, score
from edgeprune.surgery.prove import Proof, prove
from edgeprune.surgery.repair import refit
from edgeprune.surgery.repair_report import Repair
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
class Candidate:
    """What a round made: its record, and the model unless the round removed nothing."""

    record: Round
    plan: Plan | None
    module: CapturedModule | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """What a round is to do: its number, from 1, and how far it goes on the way to the budget."""

    number: int
    position: float
    refused: Mapping[str, str]


def one_round(job: Job, goal: Goal, state: State, step: Step, progress: Progress) -> Candidate:
    """Carry out one round on `state`, which stays as it is.

    `step.refused` maps fingerprints of whole plans that the guard has refused to the reason: the
    same units are not trained again. Raises ProofFailed, BudgetNotMet, and what the stages raise.
    """
    start = time.perf_counter()
    scores = scores_of(job, state.analysis, step.number)
    planner = partial(_wanted, job, state.plan, scores, step.position)
    share = goal.keep_fraction(step.position, job.dense, planner)
    wanted = planner(share)
    request = request_of(job, share, step.position)
    smaller = step_plan(job.dense, state.analysis, state.plan, wanted, scores, request)
    write = partial(_record, job, step.number, start)
    if not smaller.axes:
        kept = 1.0 if state.plan is None else state.plan.unit_keep_fraction
        why = f"accepted, nothing to remove at this step with widths in multiples of {job.multiple}"
        return Candidate(record=write(kept, True, why), plan=None, module=None)
    whole = whole_plan(job.dense, state.plan, smaller, share)
    if whole.fingerprint in step.refused:
        reason = step.refused[whole.fingerprint].removeprefix("undone, ")
        why = f"undone, half the step leaves the same units as an attempt before: {reason}"
        record = write(whole.unit_keep_fraction, False, why)
        return Candidate(record=record, plan=whole, module=None)
    return _carry_out(job, state, smaller, whole, step, write, progress)


def _carry_out(
    job: Job,
    state: State,
    smaller: Plan,
    whole: Plan,
    step: Step,
    write: partial[Round],
    progress: Progress,
) -> Candidate:
    small = shrink(state.analysis, smaller)
    proof = prove(state.analysis, smaller, small, seed=job.seed).require()
    removed = validated(job, small)
    repair = repair_(job, state.analysis, smaller, small, progress)
    repaired = None if repair is None else validated(job, small)
    recover_(job, small, job.recipe.recover.epochs, step.number, progress)
    trained = job.recipe.recover.epochs > 0
    recovered = validated(job, small) if trained or repair is None else repaired
    accepted, why = judge_accuracy(job, recovered)
    figures = cost(reanalyzed(job, small).captured)
    accuracy = RoundAccuracy(
        removed=known(removed), repaired=known(repaired), recovered=known(recovered)
    )
    record = write(whole.unit_keep_fraction, accepted, why).model_copy(
        update={
            "accuracy": accuracy,
            "proof": proof_row(proof),
            "repair": None if repair is None else repair_row(repair),
            "params": figures.params,
            "macs": figures.macs,
        }
    )
    return Candidate(record=record, plan=whole, module=small)


def _record(
    job: Job, number: int, start: float, keep_fraction: float, accepted: bool, why: str
) -> Round:
    return Round(
        round=number,
        criterion=job.recipe.prune.criterion,
        keep_fraction=keep_fraction,
        accepted=accepted,
        why=why,
        seconds=time.perf_counter() - start,
    )


def scores_of(job: Job, analysis: Analysis, number: int) -> Scores:
    """Scores of a model's units by the recipe's criterion, on samples that belong to the round."""
    samples = job.recipe.prune.score_samples
    batches = fresh_batches(job.data.train, skip=number * samples, samples=samples)
    # A split that shuffles gives the round the same samples again.
    with seeded(job.seed + number, job.splits):
        return score(
            analysis,
            job.recipe.prune.criterion,
            batches=batches,
            loss=job.data.loss,
            seed=job.seed,
        )


def fresh_batches(split: Split, *, skip: int, samples: int) -> Iterator[Batch]:
    """Batches of `split` after the first `skip` samples, until `samples` are given.

    The split is begun again as often as needed; whole batches, so that a few samples more than
    asked for may come. Nothing is read before the first batch is asked for.
    """
    seen = given = 0
    while True:
        before = seen
        for inputs, target in batches_of(split):
            seen += batch_size(inputs)
            if seen <= skip:
                continue
            yield inputs, target
            given += batch_size(inputs)
            if given >= samples:
                return
        if seen == before:
            raise DataError(
                "scoring at the training split: expected at least one batch on every pass, got "
                "none. Give Data a split that can be read again.",
                where="train",
            )


def _wanted(job: Job, so_far: Plan | None, scores: Scores, position: float, share: float) -> Plan:
    return wanted_plan(job.dense, so_far, scores, request_of(job, share, position))


def request_of(job: Job, keep_fraction: float, position: float = 1.0) -> Request:
    """The recipe's and the target's way to allocate, for a share of the units.

    Widths with a share of their own come to it on the same geometric way as the budget is come
    to: `position` of it (0-1) is behind.
    """
    asked = job.recipe.prune
    fractions = {pattern: share**position for pattern, share in asked.fractions.items()}
    return Request(
        keep_fraction,
        asked.allocation,
        job.multiple,
        job.target.pruning.depthwise_multiple,
        Selection(keep=asked.keep, only=asked.only, fractions=fractions, min_width=asked.min_width),
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


def repair_(
    job: Job, before: Analysis, smaller: Plan, small: CapturedModule, progress: Progress
) -> Repair | None:
    """Refit `small` in place on calibration inputs; None where the recipe asks for no repair."""
    settings = job.recipe.repair
    if settings.samples == 0:
        return None
    split = job.data.train if job.data.calibration is None else job.data.calibration
    found = refit(
        before, smaller, small, inputs_of(split), samples=settings.samples, ridge=settings.ridge
    )
    progress.note(_repair_line(repair_row(found)))
    return found


def repair_row(found: Repair) -> RoundRepair:
    """A repair as the report has it."""
    return RoundRepair(
        layers=len(found.layers),
        refitted=sum(layer.accepted for layer in found.layers),
        samples=found.samples,
        error_before=found.output_error_before,
        error_after=found.output_error_after,
        kept=found.kept,
        why=found.why,
    )


def _repair_line(row: RoundRepair) -> str:
    """What the repair did, in a line; errors are shares of the output's variance."""
    if not row.kept:
        return f"repair undone: {row.why}"
    return (
        f"repair: {row.refitted} of {row.layers} layers refitted on {row.samples} samples, "
        f"output error {row.error_before:.3g} -> {row.error_after:.3g}"
    )


def inputs_of(split: Split) -> Iterable[object]:
    """The inputs of a split's batches, without the targets."""
    return (inputs for inputs, _ in split)


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
        threads=recover.threads,
    )


def recover_(
    job: Job, module: CapturedModule, epochs: float, number: int, progress: Progress
) -> None:
    """Train in place, with the dense model as teacher."""
    if epochs > 0:
        teacher = job.dense.captured.module
        settings = recovery_settings(job, epochs, number)
        finetune(module, teacher, job.data.train, settings, job.data.loss, progress)


def known(accuracy: float | None) -> float | None:
    """The metric where it is a number: on a model that collapsed, one of the user's may not be."""
    return accuracy if accuracy is not None and math.isfinite(accuracy) else None


def judge_accuracy(job: Job, recovered: float | None) -> tuple[bool, str]:
    """The guard: whether validation accuracy lies within the allowed drop below dense.

    An accuracy that is NaN or infinite never does.
    """
    if recovered is None or job.dense_accuracy is None:
        return True, "accepted, the guard cannot judge: validation has no labels"
    limit = job.recipe.prune.max_accuracy_drop
    drop = job.dense_accuracy - recovered
    figures = f"{job.metric_word} {recovered:.4f} on validation, {drop:.4f} below dense"
    if math.isfinite(drop) and drop <= limit + _ROUNDING:
        return True, f"accepted, {figures}"
    return False, f"undone, {figures}, more than max_accuracy_drop {limit:g}"


def validated(job: Job, module: CapturedModule) -> float | None:
    """The metric on validation; None without labels."""
    return validation_accuracy(module, job.dense.captured.inputs, job.data)


def reanalyzed(job: Job, module: CapturedModule) -> Analysis:
    """A fresh analysis, on a copy: metadata of before the surgery is never trusted."""
    captured = job.dense.captured
    return analyze(
        module,
        captured.args,
        captured.kwargs,
        dynamic_batch=captured.dynamic_batch,
        exact_only=job.recipe.prune.exact_only,
    )
