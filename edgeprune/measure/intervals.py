"""Statistics of paired latencies. The process is the unit of replication, never the run.

Runs within one process share its memory layout and its moment, so they are not independent:
each process contributes one number (a percentile of its runs), and intervals are t-intervals
over processes, on logarithms because noise on a latency is a factor rather than a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from scipy.special import bdtr, stdtrit

from edgeprune.errors import UsageError
from edgeprune.measure.samples import Latency, PairedSamples, Ratio, Samples
from edgeprune.measure.settings import Settings

CLAIM_CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interval:
    centre: float
    low: float
    high: float


def percentile_ms(samples: Samples, percentile: float = 50.0) -> float:
    """A percentile (0-100) of one process's runs in ms, interpolated linearly (NumPy's default)."""
    return float(np.percentile(np.asarray(samples.times_ms), percentile))


def ratio(paired: PairedSamples, percentile: float = 50.0) -> Ratio:
    """How many times faster the candidate is than the baseline, at a percentile of latency.

    The t-interval (at the settings' confidence) of the per-pair log ratio, exponentiated.
    Raises UsageError for fewer than two pairs: one pair says nothing about its own spread.
    """
    logs = _log_ratios(paired.baseline, paired.candidate, percentile)
    interval = _t_interval(logs, paired.settings.confidence)
    return Ratio(
        ratio=math.exp(interval.centre),
        low=math.exp(interval.low),
        high=math.exp(interval.high),
        pairs=len(logs),
    )


def geometric_mean(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Mean, low and high: the t-interval of the logs, exponentiated. Values are above 0.

    Raises UsageError for fewer than two values.
    """
    interval = _t_interval([math.log(value) for value in values], confidence)
    return math.exp(interval.centre), math.exp(interval.low), math.exp(interval.high)


def latency_ms(
    samples: Sequence[Samples], percentile: float = 50.0, confidence: float = 0.95
) -> Latency:
    """A percentile of latency: geometric mean over processes, with its t-interval.

    Raises UsageError for fewer than two processes.
    """
    times = [percentile_ms(process, percentile) for process in samples]
    ms, low_ms, high_ms = geometric_mean(times, confidence)
    return Latency(
        ms=ms,
        low_ms=low_ms,
        high_ms=high_ms,
        percentile=percentile,
        processes=len(samples),
        least_runs=min(len(process.times_ms) for process in samples),
    )


def pairs_needed(pilot: PairedSamples) -> int:
    """How many pairs make the interval of the log ratio as narrow as the settings ask.

    Stein's two-stage size (Annals of Mathematical Statistics 16, 1945): (t s / half_width)^2,
    with the spread s and the degrees of freedom of t from the pilot, held between the
    settings' least and most pairs. A pilot of 8 pairs that spreads by 7 % asks
    for (2.365 * 0.07 / 0.05)^2, so 11 pairs.
    """
    logs = _log_ratios(pilot.baseline, pilot.candidate, 50.0)
    return needed_for_spread(float(np.std(logs, ddof=1)), len(logs), pilot.settings)


def needed_for_spread(spread: float, count: int, settings: Settings) -> int:
    """Stein's size for logarithms whose standard deviation over `count` of them is `spread`."""
    wanted = (_t_quantile(count - 1, settings.confidence) * spread / settings.half_width) ** 2
    return min(max(math.ceil(wanted), settings.least_pairs), settings.most_pairs)


def runs_needed(percentile: float, confidence: float = CLAIM_CONFIDENCE) -> int:
    """Fewest runs that can show a percentile to be within a limit, one run over it allowed.

    The smallest n for which, were the true share within the limit only `percentile` / 100,
    at most one run over it would be luck with probability 1 - `confidence`. The rule of
    MLPerf LoadGen's early stopping: p50 needs 11, p90 needs 64, p99 needs 662.
    """
    if not 0 < percentile < 100:
        raise UsageError(
            f"counting the runs needed at percentile: expected more than 0 and less than 100, "
            f"got {percentile:g}. Choose 50, 90 or 99.",
            where="percentile",
        )
    over = 1 - percentile / 100
    return next(n for n in count(2) if bdtr(1, n, over) <= 1 - confidence)


def _log_ratios(
    baseline: Sequence[Samples], candidate: Sequence[Samples], percentile: float
) -> list[float]:
    """One number a pair: log of the baseline's percentile over the candidate's."""
    return [
        math.log(percentile_ms(slow, percentile) / percentile_ms(fast, percentile))
        for slow, fast in zip(baseline, candidate, strict=True)
    ]


def _t_interval(values: Sequence[float], confidence: float) -> _Interval:
    if len(values) < 2:
        raise UsageError(
            f"interval cannot be computed at {len(values)} processes: expected at least 2, "
            f"got {len(values)}. Measure more pairs.",
            where="pairs",
        )
    centre = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = _t_quantile(len(values) - 1, confidence) * error
    return _Interval(centre=centre, low=centre - reach, high=centre + reach)


def _t_quantile(degrees: int, confidence: float) -> float:
    """Two-sided quantile of Student's t; `scipy.special` loads in a third of `scipy.stats`."""
    return float(stdtrit(degrees, (1 + confidence) / 2))
