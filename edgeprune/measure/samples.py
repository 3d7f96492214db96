"""What a measurement asks for and what it gives back: plain frozen facts, standard library only.

All times are in milliseconds, as measured, never rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the worker process reads this module and should start fast
    from edgeprune.measure.machine import MachineState
    from edgeprune.measure.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process's work: load `model`, warm up, time up to `runs` inferences of one input.

    Timing ends after `runs` inferences, or after `seconds` once `least_runs` are done.
    `model_sha256` is that of the `.onnx` file; a result for another file is refused.
    `timeout_seconds` bounds the whole process.
    """

    model: str
    model_sha256: str
    threads: int
    batch: int
    warmup: int
    runs: int
    least_runs: int
    seconds: float
    seed: int
    timeout_seconds: float
    session_options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What one fresh process measured: every timed run, in order.

    `load_ms` is session creation, `first_ms` the first inference, `peak_rss_mib` the largest
    resident size of the process (interpreter and runtime included).
    """

    model_sha256: str
    times_ms: tuple[float, ...]
    load_ms: float
    first_ms: float
    peak_rss_mib: float
    onnxruntime: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedSamples:
    """Baseline and candidate, measured side by side: entry i of both tuples is one pair.

    `baseline_first[i]` says which of the two ran first in pair i.
    """

    baseline: tuple[Samples, ...]
    candidate: tuple[Samples, ...]
    baseline_first: tuple[bool, ...]
    settings: Settings
    threads: int
    batch: int
    before: MachineState
    after: MachineState


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Latency of the baseline / latency of the candidate, with its confidence interval."""

    ratio: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A percentile of one model's latency over several processes, with its confidence interval.

    `least_runs` is the smallest number of timed runs in any process: it bounds which percentile
    may be claimed.
    """

    ms: float
    low_ms: float
    high_ms: float
    percentile: float
    processes: int
    least_runs: int
