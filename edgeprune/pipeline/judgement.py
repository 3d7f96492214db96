"""Judge the delivered file: latency, accuracy on test (read once), size, parity, the budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgeprune.errors import DataError
from edgeprune.gates.accuracy import AccuracyEvidence, paired_counts
from edgeprune.gates.accuracy_ratio import RatioEvidence
from edgeprune.gates.judging import judge
from edgeprune.gates.latency_check import LatencyLimits, judge_paired, not_timed, with_budget
from edgeprune.gates.parity import parity_evidence
from edgeprune.gates.prediction import Predictions, predict
from edgeprune.gates.size import SizeEvidence
from edgeprune.gates.verdict import Verdict
from edgeprune.measure.here import why_not_here
from edgeprune.measure.machine import MachineState
from edgeprune.measure.pairs import measure_pairs
from edgeprune.measure.samples import PairedSamples, Samples
from edgeprune.measure.settings import Settings
from edgeprune.pipeline.budget import budget_verdict
from edgeprune.pipeline.delivery import Delivery
from edgeprune.pipeline.journal import Journal
from edgeprune.pipeline.preparation import Job, can_measure
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.rounds import Pruning
from edgeprune.recipe.data import (
    Array,
    Batch,
    Outputs,
    Split,
    apply_metric,
    batches_of,
    named_inputs,
)

_READ = "reading of the test split"
_SAMPLES_AT_ONCE = 1024
"""Test samples held in memory while both models run on them."""


class _Timed(BaseModel):
    """PairedSamples as the journal has them; the dataclass itself imports nothing to check with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    baseline: tuple[Samples, ...]
    candidate: tuple[Samples, ...]
    baseline_first: tuple[bool, ...]
    settings: Settings
    threads: int
    batch: int
    before: MachineState
    after: MachineState

    @classmethod
    def of(cls, paired: PairedSamples) -> _Timed:
        return cls(**{name: getattr(paired, name) for name in cls.model_fields})

    def paired(self) -> PairedSamples:
        return PairedSamples(**{name: getattr(self, name) for name in type(self).model_fields})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """Every verdict, and the figures behind them. Accuracies are on test, None without labels."""

    verdicts: tuple[Verdict, ...]
    dense_accuracy: float | None
    pruned_accuracy: float | None
    paired: PairedSamples | None
    test_reads: int


def judge_build(
    job: Job, pruning: Pruning, delivery: Delivery, journal: Journal, progress: Progress
) -> Judgement:
    """Measure, read the test split once for both models, and give the verdicts.

    A measurement of the same two files is taken from the journal; a reading of the test split is
    written there before it begins, so that one that was interrupted counts too.
    """
    progress.stage("measure latency")
    paired = _measure(job, delivery, journal, progress)
    progress.stage("judge on the test split")
    reads = 1 + sum(step.startswith(_READ) for step in journal.steps)
    journal.add(f"{_READ} {reads}", bool, True)
    dense, pruned = predict_both(delivery.dense.path, delivery.pruned.path, job.data.test, progress)
    accuracy = accuracy_evidence(job, dense, pruned)
    verdicts = (
        budget_verdict(job, pruning, paired),
        *_latency_verdicts(job, delivery, paired),
        *judge(accuracy, *_ratio_evidence(job, accuracy)),
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
        test_reads=reads,
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
    for batch in batches_of(split):
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


def _ratio_evidence(job: Job, accuracy: AccuracyEvidence) -> tuple[RatioEvidence, ...]:
    """What the device asks for beside the recipe's gate."""
    least = job.target.budget.accuracy_min_ratio
    if least is None:
        return ()
    return (
        RatioEvidence(
            dense=accuracy.dense, pruned=accuracy.pruned, least=least, samples=accuracy.samples
        ),
    )


def _measure(
    job: Job, delivery: Delivery, journal: Journal, progress: Progress
) -> PairedSamples | None:
    if not can_measure(job.target):
        progress.note(f"latency is not measured: target '{job.target.name}' is not reached")
        return None
    # The files' hashes are part of the name: an export that came out otherwise is measured anew.
    files = f"{delivery.dense.sha256[:12]} {delivery.pruned.sha256[:12]}"
    known = journal.find(f"latency {files}", _Timed)
    paired = None if known is None else known.paired()
    if paired is None:
        paired = measure_pairs(
            delivery.dense.path,
            delivery.pruned.path,
            job.target,
            job.measuring,
            progress=lambda done, total: progress.step(done, total, "pairs"),
        )
        journal.add(f"latency {files}", _Timed, _Timed.of(paired))
    return paired


def _latency_verdicts(
    job: Job, delivery: Delivery, paired: PairedSamples | None
) -> tuple[Verdict, ...]:
    """The recipe's limits, and those of the device that the recipe does not set."""
    gates, target = job.recipe.gates, job.target
    limits = LatencyLimits(p50_ms=gates.latency_ms, speedup=gates.speedup)
    asked = with_budget(limits, target, has_baseline=True)
    if paired is None:
        return not_timed(asked, target, delivery.pruned.path, why_not_here(target) or "")
    return judge_paired(asked, paired)


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
