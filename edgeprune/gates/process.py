"""The process gate: what starting the build costs a device, in time and in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Verdict, by_interval
from edgeprune.measure.intervals import geometric_mean
from edgeprune.measure.samples import Samples

_LEAST_PROCESSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEvidence:
    """Fresh processes that ran the build, and limits; None is not judged.

    load_ms bounds making the session, first_ms the first inference, in milliseconds;
    peak_rss_mib the largest resident size of the process in MiB, interpreter and runtime included.
    """

    gate: ClassVar[str] = "process"

    processes: tuple[Samples, ...]
    confidence: float
    load_ms: float | None = None
    first_ms: float | None = None
    peak_rss_mib: float | None = None


@gate("process")
def judge_process(evidence: ProcessEvidence) -> tuple[Verdict, ...]:
    """`process_load`, `_first` (ms) and `_memory` (MiB) by the interval of their geometric means.

    A limit inside the interval is inconclusive; so is a figure that was not recorded.
    """
    seen = evidence.processes
    asked = (
        ("process_load", evidence.load_ms, "ms", [s.load_ms for s in seen]),
        ("process_first", evidence.first_ms, "ms", [s.first_ms for s in seen]),
        ("process_memory", evidence.peak_rss_mib, "MiB", [s.peak_rss_mib for s in seen]),
    )
    return tuple(
        _judged(name, limit, unit, values, evidence.confidence)
        for name, limit, unit, values in asked
        if limit is not None
    )


def _judged(name: str, limit: float, unit: str, values: list[float], confidence: float) -> Verdict:
    lacking = None
    if len(values) < _LEAST_PROCESSES:
        lacking = f"an interval needs {_LEAST_PROCESSES} processes, got {len(values)}. Measure more"
    elif min(values) <= 0:
        lacking = "the tool that took the times does not tell it. Use `edgeprune bench --save`"
    if lacking is not None:
        return Verdict(
            gate=name,
            outcome="inconclusive",
            observed=None,
            limit=limit,
            unit=unit,
            interval=None,
            count=len(values),
            why=lacking,
        )
    mean, low, high = geometric_mean(values, confidence)
    outcome = by_interval((low, high), limit, at_most=True)
    said = f"geometric mean of {len(values)} fresh processes, {confidence:.0%} interval"
    if outcome == "inconclusive":
        said += "; the limit lies inside the interval: measure more pairs or quieten the host"
    return Verdict(
        gate=name,
        outcome=outcome,
        observed=mean,
        limit=limit,
        unit=unit,
        interval=(low, high),
        count=len(values),
        why=said,
    )
