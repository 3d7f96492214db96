"""The latency gate: an absolute limit in ms, a least speedup over the baseline, or both.

Both are judged by the whole interval, at the confidence of the measurement: a limit inside the
interval is inconclusive, because another measurement could land on the other side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeprune.errors import UsageError
from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Outcome, Verdict, by_interval
from edgeprune.measure.intervals import CLAIM_CONFIDENCE, latency_ms, ratio, runs_needed
from edgeprune.measure.samples import PairedSamples

_LEAST_PAIRS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyEvidence:
    """Paired times of the dense model (baseline) and the pruned one (candidate), and limits.

    Without a baseline its times are empty, and only an absolute limit can be judged.

    `limit_ms` bounds the candidate's latency at `percentile` (0-100); `least_speedup` bounds
    dense / pruned at that percentile from below. At least one of the two is given.
    """

    gate: ClassVar[str] = "latency"

    paired: PairedSamples
    limit_ms: float | None = None
    least_speedup: float | None = None
    percentile: float = 50.0

    def __post_init__(self) -> None:
        if self.limit_ms is None and self.least_speedup is None:
            raise UsageError(
                "latency cannot be judged at its limits: expected limit_ms or least_speedup, "
                "got neither. Set one of them.",
                where="latency",
            )


@gate("latency")
def judge_latency(evidence: LatencyEvidence) -> tuple[Verdict, ...]:
    """Judge `latency` in ms if it has a limit, and `speedup` as a ratio if it has one.

    At a percentile other than the median the names end in `_p90` and so on.
    """
    verdicts = []
    if evidence.limit_ms is not None:
        verdicts.append(_absolute(evidence, evidence.limit_ms))
    if evidence.least_speedup is not None:
        verdicts.append(_relative(evidence, evidence.least_speedup))
    return tuple(verdicts)


def _absolute(evidence: LatencyEvidence, limit_ms: float) -> Verdict:
    name = _name("latency", evidence)
    lacking = _lacking(evidence)
    if lacking is not None:
        return _not_claimable(name, limit_ms, "ms", evidence, lacking)
    found = latency_ms(
        evidence.paired.candidate, evidence.percentile, evidence.paired.settings.confidence
    )
    interval = (found.low_ms, found.high_ms)
    outcome = by_interval(interval, limit_ms, at_most=True)
    return Verdict(
        gate=name,
        outcome=outcome,
        observed=found.ms,
        limit=limit_ms,
        unit="ms",
        interval=interval,
        count=found.processes,
        why=_why(evidence, f"{found.processes} processes", outcome),
    )


def _relative(evidence: LatencyEvidence, least_speedup: float) -> Verdict:
    name = _name("speedup", evidence)
    lacking = _lacking(evidence)
    if lacking is not None:
        return _not_claimable(name, least_speedup, "x", evidence, lacking)
    found = ratio(evidence.paired, evidence.percentile)
    interval = (found.low, found.high)
    outcome = by_interval(interval, least_speedup, at_most=False)
    return Verdict(
        gate=name,
        outcome=outcome,
        observed=found.ratio,
        limit=least_speedup,
        unit="x",
        interval=interval,
        count=found.pairs,
        why=_why(evidence, f"{found.pairs} interleaved pairs of processes", outcome),
    )


def _lacking(evidence: LatencyEvidence) -> str | None:
    """Why these samples cannot carry the claim, or None if they can."""
    pairs = len(evidence.paired.candidate)
    if pairs < _LEAST_PAIRS:
        return f"an interval needs {_LEAST_PAIRS} pairs of processes, got {pairs}. Measure more."
    needed = runs_needed(evidence.percentile)
    runs = _least_runs(evidence)
    if runs < needed:
        return (
            f"p{evidence.percentile:g} needs {needed} runs a process at {CLAIM_CONFIDENCE:.0%}, "
            f"got {runs}. Set least_runs to {needed} or more."
        )
    return None


def _not_claimable(
    name: str, limit: float, unit: str, evidence: LatencyEvidence, lacking: str
) -> Verdict:
    return Verdict(
        gate=name,
        outcome="inconclusive",
        observed=None,
        limit=limit,
        unit=unit,
        interval=None,
        count=len(evidence.paired.candidate),
        why=lacking,
    )


def _why(evidence: LatencyEvidence, sample: str, outcome: Outcome) -> str:
    """How the number came about; what to do about it if it decides nothing."""
    median = evidence.percentile == 50
    threads = evidence.paired.threads
    said = (
        f"{'median' if median else f'p{evidence.percentile:g}'}, {sample}, at least "
        f"{_least_runs(evidence)} runs each, {threads} thread{'s' if threads > 1 else ''}, "
        f"{evidence.paired.settings.confidence:.0%} interval"
    )
    if outcome == "inconclusive":
        return f"{said}; the limit lies inside the interval: measure more pairs or quieten the host"
    return said


def _least_runs(evidence: LatencyEvidence) -> int:
    paired = evidence.paired
    return min(len(samples.times_ms) for samples in (*paired.baseline, *paired.candidate))


def _name(gate_name: str, evidence: LatencyEvidence) -> str:
    return gate_name if evidence.percentile == 50 else f"{gate_name}_p{evidence.percentile:g}"
