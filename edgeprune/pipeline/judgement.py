"""Judge the delivered file: latency, accuracy on test (read once), size, parity, the budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.errors import DataError
from edgeprune.gates.accuracy import AccuracyEvidence, paired_counts
from edgeprune.gates.judging import judge
from edgeprune.gates.latency import LatencyEvidence
from edgeprune.gates.parity import parity_evidence
from edgeprune.gates.prediction import Predictions, predict
from edgeprune.gates.size import SizeEvidence
from edgeprune.gates.verdict import Verdict
from edgeprune.measure.pairs import measure_pairs
from edgeprune.measure.samples import PairedSamples
from edgeprune.pipeline.delivery import Delivery
from edgeprune.pipeline.preparation import Job, can_measure
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.rounds import Pruning
from edgeprune.recipe.data import Array, Batch, Outputs, Split, apply_metric, named_inputs

_SAMPLES_AT_ONCE = 1024
"""Test samples held in memory while both models run on them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """Every verdict, and the figures behind them. Accuracies are on test, None without labels."""

    verdicts: tuple[Verdict, ...]
    dense_accuracy: float | None
    pruned_accuracy: float | None
    paired: PairedSamples | None
    test_reads: int


def judge_build(job: Job, pruning: Pruning, delivery: Delivery, progress: Progress) -> Judgement:
    """Measure, read the test split once for both models, and give the verdicts."""
    progress.stage("measure latency")
    paired = _measure(job, delivery, progress)
    progress.stage("judge on the test split")
    dense, pruned = predict_both(delivery.dense.path, delivery.pruned.path, job.data.test, progress)
    accuracy = accuracy_evidence(job, dense, pruned)
    verdicts = (
        budget_verdict(job, pruning),
        *_latency_verdicts(job, paired),
        *judge(accuracy),
        *_size_verdicts(job, delivery),
        *judge(
            parity_evidence(delivery.pruned.path, delivery.parity, limit=job.recipe.gates.parity)
        ),
    )
    return Judgement(
        verdicts=verdicts,
        dense_accuracy=accuracy.dense,
        pruned_accuracy=accuracy.pruned,
        paired=paired,
        test_reads=1,
    )


def budget_verdict(job: Job, pruning: Pruning) -> Verdict:
    """Whether the units went that the budget asks for: failed when the guard ended the run early.

    `limit` is the share of units that is left when widths are rounded; where nothing at all can
    be removed although it was asked for, the verdict is a failure too.
    """
    kept, wanted = pruning.plan.unit_keep_fraction, job.recipe.prune.budget.keep_fraction
    said = f"keep_fraction {wanted:g} leaves {pruning.asked:.4g} of the units"
    said += f" at widths in multiples of {job.multiple}" if job.multiple > 1 else ""
    nothing = wanted < 1.0 and not pruning.plan.axes
    if pruning.stopped is not None:
        why = f"{said}, but {pruning.stopped}. Allow a larger drop, train longer, or keep more"
    elif nothing:
        pins = "; ".join(f"{pin.unit}: {pin.reason}" for pin in job.dense.pins[:3])
        why = f"{said}: nothing can be removed ({pins or 'widths too small for the multiple'})"
    else:
        why = said
    return Verdict(
        gate="budget",
        outcome="pass" if pruning.stopped is None and not nothing else "fail",
        observed=kept,
        limit=pruning.asked,
        unit="fraction",
        interval=None,
        count=sum(group.width for group in pruning.plan.groups),
        why=why,
    )


def predict_both(
    dense: Path, pruned: Path, split: Split, progress: Progress
) -> tuple[Predictions, Predictions]:
    """Outputs of both files over one single pass of the split."""
    parts: list[tuple[Predictions, Predictions]] = []
    done = 0
    for chunk in _chunks(split):
        parts.append((predict(dense, chunk), predict(pruned, chunk)))
        done += parts[-1][0].samples
        progress.step(done, 0, f"{done} samples")
    if not parts:
        raise DataError(
            "reading the data at the test split: expected at least one batch, got none. Make the "
            "split re-iterable.",
            where="test",
        )
    return _joined([a for a, _ in parts]), _joined([b for _, b in parts])


def _chunks(split: Split) -> Iterator[list[Batch]]:
    """The batches in lists of about _SAMPLES_AT_ONCE samples, in order, each once."""
    chunk: list[Batch] = []
    samples = 0
    for batch in split:
        chunk.append(batch)
        samples += len(next(iter(named_inputs(batch[0]).values())))
        if samples >= _SAMPLES_AT_ONCE:
            yield chunk
            chunk, samples = [], 0
    if chunk:
        yield chunk


def _joined(parts: list[Predictions]) -> Predictions:
    targets = [part.targets for part in parts if part.targets is not None]
    if len(targets) not in (0, len(parts)):
        raise DataError(
            "reading the data at the test split: expected targets in all batches or in none, got "
            "some. Label the whole split.",
            where="test",
        )
    piles = zip(*(_as_tuple(part.outputs) for part in parts), strict=True)
    outputs = tuple(np.concatenate(arrays) for arrays in piles)
    return Predictions(
        names=parts[0].names,
        outputs=outputs[0] if len(outputs) == 1 else outputs,
        targets=np.concatenate(targets) if targets else None,
        samples=sum(part.samples for part in parts),
    )


def _as_tuple(outputs: Outputs) -> tuple[Array, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def accuracy_evidence(job: Job, dense: Predictions, pruned: Predictions) -> AccuracyEvidence:
    """The metric of both models; with the default metric also who was right where."""
    limits = job.recipe.gates
    targets = dense.targets
    if targets is None:
        return AccuracyEvidence(
            dense=None,
            pruned=None,
            largest_drop=limits.accuracy_drop,
            confidence=limits.confidence,
            samples=dense.samples,
        )
    metric = job.data.metric
    scores = (_as_tuple(dense.outputs)[0], _as_tuple(pruned.outputs)[0])
    return AccuracyEvidence(
        dense=apply_metric(metric, dense.outputs, targets),
        pruned=apply_metric(metric, pruned.outputs, targets),
        largest_drop=limits.accuracy_drop,
        counts=None if metric else paired_counts(*scores, targets),
        confidence=limits.confidence,
        samples=dense.samples,
    )


def _measure(job: Job, delivery: Delivery, progress: Progress) -> PairedSamples | None:
    if not can_measure(job.target):
        progress.note(f"latency is not measured: target '{job.target.name}' is not reached")
        return None
    return measure_pairs(
        delivery.dense.path,
        delivery.pruned.path,
        job.target,
        job.measuring,
        progress=lambda done, total: progress.step(done, total, "pairs"),
    )


def _latency_verdicts(job: Job, paired: PairedSamples | None) -> tuple[Verdict, ...]:
    gates = job.recipe.gates
    limit_ms = gates.latency_ms or job.target.budget.p50_ms
    asked = [(name, v, u) for name, v, u in _limits(limit_ms, gates.speedup) if v is not None]
    if paired is None:
        return tuple(_not_reached(job, name, limit, unit) for name, limit, unit in asked)
    if not asked:
        return ()
    return judge(LatencyEvidence(paired=paired, limit_ms=limit_ms, least_speedup=gates.speedup))


def _limits(
    limit_ms: float | None, speedup: float | None
) -> tuple[tuple[str, float | None, str], ...]:
    return (("latency", limit_ms, "ms"), ("speedup", speedup, "x"))


def _not_reached(job: Job, gate: str, limit: float, unit: str) -> Verdict:
    return Verdict(
        gate=gate,
        outcome="inconclusive",
        observed=None,
        limit=limit,
        unit=unit,
        interval=None,
        count=None,
        why=f"target '{job.target.name}' is not reached from here, so no time was taken. Check the "
        f"file on the device.",
    )


def _size_verdicts(job: Job, delivery: Delivery) -> tuple[Verdict, ...]:
    limit_mib = job.recipe.gates.size_mib or job.target.budget.model_mib
    if limit_mib is None and job.recipe.gates.size_ratio is None:
        return ()
    return judge(
        SizeEvidence(
            pruned_bytes=delivery.pruned.size_bytes,
            dense_bytes=delivery.dense.size_bytes,
            limit_mib=limit_mib,
            largest_ratio=job.recipe.gates.size_ratio,
        )
    )
