"""The accuracy gate: how far the pruned model may fall below the dense one on the same samples.

The interval is Newcombe's for a difference between paired proportions: R. G. Newcombe, "Improved
confidence intervals for the difference between binomial proportions based on paired data",
Statistics in Medicine 17 (1998), 2635-2650, method 10. It is closed, needs only how often each
model was right where the other was not, and stays sensible at 0 and 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import ndtri

from edgeprune.errors import DataError
from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Outcome, Verdict, by_interval
from edgeprune.recipe.data import Array

_SHOWN_CONFIDENCE = 0.95

# 0.91 - 0.90 is 0.010000000000000009: a drop equal to its limit must not fail by rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCounts:
    """On how many samples both models were right, only one of them, or neither."""

    both: int
    dense_only: int
    pruned_only: int
    neither: int

    @property
    def samples(self) -> int:
        """How many samples there are in all."""
        return self.both + self.dense_only + self.pruned_only + self.neither

    @property
    def drop(self) -> float:
        """Accuracy of the dense model minus that of the pruned one, -1 to 1."""
        return (self.dense_only - self.pruned_only) / self.samples


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyEvidence:
    """The metric of both models on one split, higher is better, and the largest drop allowed.

    `dense` and `pruned` are None without labels. `counts` are there when the metric is the share
    of samples that are right (`paired_counts`); otherwise there is no interval. `confidence`
    (0.5-1) makes the gate judge the interval at that confidence instead of the observed drop.
    """

    gate: ClassVar[str] = "accuracy"

    dense: float | None
    pruned: float | None
    largest_drop: float
    counts: PairedCounts | None = None
    confidence: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.counts is None or self.dense is None or self.pruned is None:
            return
        observed = self.dense - self.pruned
        if abs(self.counts.drop - observed) > 1e-6:
            raise DataError(
                f"accuracy cannot be judged at counts: expected the drop of the metric, "
                f"{observed:.6g}, got {self.counts.drop:.6g}. Pass counts only if the metric is "
                "the share of samples that are right.",
                where="counts",
            )


@gate("accuracy")
def judge_accuracy(evidence: AccuracyEvidence) -> tuple[Verdict, ...]:
    """One verdict `accuracy`: the drop, as a fraction or in the metric's unit, and its interval."""
    lacking = _lacking(evidence)
    if lacking is not None or evidence.dense is None or evidence.pruned is None:
        return (_verdict(evidence, "inconclusive", None, None, lacking or _NO_LABELS),)
    drop = evidence.dense - evidence.pruned if evidence.counts is None else evidence.counts.drop
    within = drop <= evidence.largest_drop + _ROUNDING
    observed_outcome: Outcome = "pass" if within else "fail"
    if evidence.counts is None:
        outcome = observed_outcome if evidence.confidence is None else "inconclusive"
        return (_verdict(evidence, outcome, drop, None, _why(evidence, outcome)),)

    interval = paired_interval(evidence.counts, evidence.confidence or _SHOWN_CONFIDENCE)
    outcome = observed_outcome
    if evidence.confidence is not None:
        outcome = by_interval(interval, evidence.largest_drop + _ROUNDING, at_most=True)
    return (_verdict(evidence, outcome, drop, interval, _why(evidence, outcome)),)


def paired_counts(dense_outputs: Array, pruned_outputs: Array, targets: Array) -> PairedCounts:
    """Where each of two classifiers is right: scores (N, C) of both, class numbers (N,).

    The predicted class is the one with the highest score. Raises DataError for other shapes or
    for no samples.
    """
    samples = targets.shape[0] if targets.ndim else 0
    for name, array in (("dense outputs", dense_outputs), ("pruned outputs", pruned_outputs)):
        if array.ndim != 2 or array.shape[0] != samples or samples == 0 or targets.ndim != 1:
            raise DataError(
                f"counting right answers at {name}: expected scores (N, C) for targets (N,), got "
                f"{array.shape} for {targets.shape}. Use a metric of your own for other tasks.",
                where=name,
            )
    dense = np.argmax(dense_outputs, axis=1) == targets
    pruned = np.argmax(pruned_outputs, axis=1) == targets
    return PairedCounts(
        both=int(np.sum(dense & pruned)),
        dense_only=int(np.sum(dense & ~pruned)),
        pruned_only=int(np.sum(~dense & pruned)),
        neither=int(np.sum(~dense & ~pruned)),
    )


def paired_interval(counts: PairedCounts, confidence: float) -> tuple[float, float]:
    """Interval of dense minus pruned accuracy (Newcombe 1998, method 10), within -1 to 1.

    Wilson's score interval of each accuracy, combined with the correlation between the two.
    PairedCounts(both=14, dense_only=5, pruned_only=0, neither=22) at 95 % gives 0.011 to 0.226.
    """
    z = float(ndtri((1 + confidence) / 2))
    n = counts.samples
    dense = (counts.both + counts.dense_only) / n
    pruned = (counts.both + counts.pruned_only) / n
    dense_low, dense_high = _wilson(dense, n, z)
    pruned_low, pruned_high = _wilson(pruned, n, z)
    phi = _correlation(counts)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    low = counts.drop - reach(dense - dense_low, pruned_high - pruned)
    high = counts.drop + reach(pruned - pruned_low, dense_high - dense)
    return max(-1.0, low), min(1.0, high)


def share_interval(share: float, samples: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share (0-1) of `samples` at a confidence (0-1)."""
    return _wilson(share, samples, float(ndtri((1 + confidence) / 2)))


def _wilson(share: float, n: int, z: float) -> tuple[float, float]:
    """Wilson's score interval for a share of n."""
    centre = share + z**2 / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return (centre - reach) / scale, (centre + reach) / scale


def _correlation(counts: PairedCounts) -> float:
    """Newcombe's phi: the correlation of being right, shrunk by n/2 when it is positive."""
    a, b, c, d = counts.both, counts.dense_only, counts.pruned_only, counts.neither
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    agreement = a * d - b * c
    if agreement > 0:
        return max(agreement - counts.samples / 2, 0.0) / math.sqrt(margins)
    return agreement / math.sqrt(margins)


_NO_LABELS = "the split has no labels, so accuracy is unknown. Give its targets."


def _lacking(evidence: AccuracyEvidence) -> str | None:
    if evidence.dense is None or evidence.pruned is None:
        return _NO_LABELS
    if not (math.isfinite(evidence.dense) and math.isfinite(evidence.pruned)):
        return (
            f"the metric is {evidence.dense} for the dense model and {evidence.pruned} for the "
            "pruned one. Make it return a finite number."
        )
    return None


def _why(evidence: AccuracyEvidence, outcome: Outcome) -> str:
    said = f"drop from {evidence.dense:.4g} to {evidence.pruned:.4g}"
    if _samples(evidence) is not None:
        said += f" on {_samples(evidence)} samples"
    if evidence.counts is None:
        said += "; no interval: the metric is not a share of samples that are right"
        if evidence.confidence is not None:
            said += ", so no bound can be judged. Leave confidence out"
        return said
    said += f"; {evidence.confidence or _SHOWN_CONFIDENCE:.0%} paired interval"
    if evidence.confidence is None:
        return f"{said}, the observed drop is judged"
    if outcome == "inconclusive":
        return f"{said}, the limit lies inside it: use more samples"
    return f"{said}, its bound is judged"


def _verdict(
    evidence: AccuracyEvidence,
    outcome: Outcome,
    drop: float | None,
    interval: tuple[float, float] | None,
    why: str,
) -> Verdict:
    own = evidence.counts is None and evidence.dense is not None
    return Verdict(
        gate="accuracy",
        outcome=outcome,
        observed=drop,
        limit=evidence.largest_drop,
        unit="metric" if own else "fraction",
        interval=interval,
        count=_samples(evidence),
        why=why,
    )


def _samples(evidence: AccuracyEvidence) -> int | None:
    return evidence.samples if evidence.counts is None else evidence.counts.samples
