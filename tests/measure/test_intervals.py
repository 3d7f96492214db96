"""Statistics of paired latencies, against SciPy, NumPy, hand-computed values and simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.measure import (
    PairedSamples,
    Samples,
    Settings,
    latency_ms,
    machine_state,
    pairs_needed,
    percentile_ms,
    ratio,
    runs_needed,
)

STATE = machine_state()
TIMES = st.floats(min_value=1e-3, max_value=1e4)
PAIRS = st.lists(
    st.tuples(st.lists(TIMES, min_size=1, max_size=5), st.lists(TIMES, min_size=1, max_size=5)),
    min_size=2,
    max_size=12,
)


def samples(times_ms: Sequence[float]) -> Samples:
    """One process with these times."""
    return Samples(
        model_sha256="0",
        times_ms=tuple(times_ms),
        load_ms=1.0,
        first_ms=1.0,
        peak_rss_mib=1.0,
        onnxruntime="0",
    )


def paired(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], settings: Settings | None = None
) -> PairedSamples:
    """Pairs of (baseline times, candidate times)."""
    return PairedSamples(
        baseline=tuple(samples(baseline) for baseline, _ in pairs),
        candidate=tuple(samples(candidate) for _, candidate in pairs),
        baseline_first=tuple(index % 2 == 0 for index in range(len(pairs))),
        settings=settings or Settings(),
        threads=1,
        batch=1,
        before=STATE,
        after=STATE,
    )


def test_ratio_of_hand_computed_pairs() -> None:
    """Pairs 4/1 and 1/1 have log ratios 2 ln 2 and 0: ratio 2, half-width t(1) ln 2."""
    found = ratio(paired([([4.0], [1.0]), ([1.0], [1.0])]))

    reach = 12.706204736 * math.log(2)  # t for one degree of freedom at 95 %, from tables
    assert found.ratio == pytest.approx(2.0)
    assert found.low == pytest.approx(2 * math.exp(-reach), rel=1e-6)
    assert found.high == pytest.approx(2 * math.exp(reach), rel=1e-6)
    assert found.pairs == 2


@given(pairs=PAIRS)
@hypothesis_settings(deadline=None, max_examples=60)
def test_ratio_is_scipys_paired_t_interval_on_logarithms(
    pairs: list[tuple[list[float], list[float]]],
) -> None:
    """The interval is that of SciPy's paired t-test on the logarithms of the medians."""
    slow = np.log([np.median(baseline) for baseline, _ in pairs])
    fast = np.log([np.median(candidate) for _, candidate in pairs])
    logs = slow - fast
    assume(np.std(logs) > 1e-9)  # SciPy has no t-test without any spread
    test = scipy.stats.ttest_rel(slow, fast).confidence_interval(0.95)

    found = ratio(paired(pairs))

    assert math.log(found.low) == pytest.approx(test.low, rel=1e-6, abs=1e-9)
    assert math.log(found.high) == pytest.approx(test.high, rel=1e-6, abs=1e-9)


@given(pairs=PAIRS)
@hypothesis_settings(deadline=None, max_examples=60)
def test_swapping_the_models_gives_the_reciprocal(
    pairs: list[tuple[list[float], list[float]]],
) -> None:
    """The ratio the other way round is 1 / ratio, and its interval is turned over."""
    forth = ratio(paired(pairs))
    back = ratio(paired([(candidate, baseline) for baseline, candidate in pairs]))

    assert back.ratio == pytest.approx(1 / forth.ratio, rel=1e-9)
    assert back.low == pytest.approx(1 / forth.high, rel=1e-9)
    assert back.high == pytest.approx(1 / forth.low, rel=1e-9)


@given(pairs=PAIRS, factor=st.floats(min_value=0.01, max_value=100))
@hypothesis_settings(deadline=None, max_examples=60)
def test_a_slower_clock_changes_no_ratio(
    pairs: list[tuple[list[float], list[float]]], factor: float
) -> None:
    """Multiplying every time by one factor leaves ratio and interval as they are."""
    scaled = [([t * factor for t in one], [t * factor for t in other]) for one, other in pairs]

    before, after = ratio(paired(pairs)), ratio(paired(scaled))

    assert after.ratio == pytest.approx(before.ratio, rel=1e-9)
    assert after.low == pytest.approx(before.low, rel=1e-6)
    assert after.high == pytest.approx(before.high, rel=1e-6)


@given(pairs=PAIRS)
@hypothesis_settings(deadline=None, max_examples=30)
def test_an_estimate_lies_in_its_interval(pairs: list[tuple[list[float], list[float]]]) -> None:
    """low <= ratio <= high, and the same for a latency."""
    found = ratio(paired(pairs))
    single = latency_ms(paired(pairs).candidate)

    assert found.low <= found.ratio <= found.high
    assert single.low_ms <= single.ms <= single.high_ms


@given(times=st.lists(TIMES, min_size=1, max_size=50), q=st.floats(min_value=0, max_value=100))
@hypothesis_settings(deadline=None, max_examples=60)
def test_percentile_interpolates_between_order_statistics(times: list[float], q: float) -> None:
    """The percentile at q lies (n - 1) q / 100 steps along the sorted times."""
    ordered = sorted(times)
    position = (len(times) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(times) - 1)
    expected = ordered[below] + (position - below) * (ordered[above] - ordered[below])

    assert percentile_ms(samples(times), q) == pytest.approx(expected, rel=1e-9)


def test_latency_is_the_geometric_mean_over_processes() -> None:
    """Two processes with medians 1 and 4 ms have a latency of 2 ms, bounded by their runs."""
    found = latency_ms((samples([1.0, 1.0, 9.0]), samples([4.0, 4.0])))

    assert found.ms == pytest.approx(2.0)
    assert (found.processes, found.least_runs) == (2, 2)


def test_one_pair_has_no_interval() -> None:
    """A single pair is refused: it says nothing about its own spread."""
    with pytest.raises(UsageError, match="expected at least 2, got 1. Measure more pairs."):
        ratio(paired([([1.0], [1.0])]))


@pytest.mark.parametrize(("percentile", "runs"), [(50, 11), (90, 64), (99, 662)])
def test_runs_needed_are_loadgens(percentile: float, runs: int) -> None:
    """LoadGen's published bound at 99 % with one run over: 64 for p90, 662 for p99."""
    assert runs_needed(percentile) == runs


@given(percentile=st.floats(min_value=10, max_value=99.5))
@hypothesis_settings(deadline=None, max_examples=30)
def test_runs_needed_are_the_fewest_that_scipy_allows(percentile: float) -> None:
    """n runs make one run over the limit improbable, n - 1 do not (SciPy's binomial)."""
    runs = runs_needed(percentile)

    assert scipy.stats.binom.cdf(1, runs, 1 - percentile / 100) <= 0.01
    assert runs == 2 or scipy.stats.binom.cdf(1, runs - 1, 1 - percentile / 100) > 0.01


def test_no_runs_show_the_largest_value() -> None:
    """A p100 cannot be claimed from any number of runs."""
    with pytest.raises(UsageError, match="less than 100, got 100"):
        runs_needed(100)


def test_pairs_needed_follow_the_pilots_spread() -> None:
    """Eight pairs that spread by 7 % ask for (2.365 * 0.07 / 0.05)^2, so 11 pairs."""
    deviations = np.array([-1, 1, -1, 1, -1, 1, -1, 1]) * 0.07 / math.sqrt(8 / 7)
    pilot = paired([([math.exp(d)], [1.0]) for d in deviations])

    assert pairs_needed(pilot) == 11
    assert pairs_needed(replace(pilot, settings=Settings(half_width=0.03, most_pairs=30))) == 30
    assert pairs_needed(replace(pilot, settings=Settings(half_width=0.03, most_pairs=99))) == 31
    assert pairs_needed(replace(pilot, settings=Settings(half_width=1.0))) == 10
