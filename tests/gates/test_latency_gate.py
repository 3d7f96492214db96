"""The latency gate on scripted times."""

from __future__ import annotations

import pytest
import scipy.stats

from edgeprune.errors import UsageError
from edgeprune.gates import LatencyEvidence, judge

SPREAD = (0.99, 1.0, 1.01, 1.0, 0.99, 1.01, 1.0, 1.0, 0.995, 1.005)


def test_a_limit_above_the_interval_passes(make_pairs) -> None:
    """8 ms against ten processes near 4 ms: pass, with all ten counted."""
    pairs = make_pairs([8.0] * 10, [4.0 * factor for factor in SPREAD])

    (verdict,) = judge(LatencyEvidence(paired=pairs, limit_ms=8.0))

    assert (verdict.gate, verdict.outcome, verdict.unit) == ("latency", "pass", "ms")
    assert verdict.observed == pytest.approx(scipy.stats.gmean([4.0 * f for f in SPREAD]))
    assert verdict.count == 10
    assert verdict.line().endswith(
        "<= 8 ms (median, 10 processes, at least 64 runs each, 1 thread, 95% interval)"
    )


def test_a_limit_below_the_interval_fails(make_pairs) -> None:
    """3 ms against ten processes near 4 ms: fail."""
    pairs = make_pairs([8.0] * 10, [4.0 * factor for factor in SPREAD])

    (verdict,) = judge(LatencyEvidence(paired=pairs, limit_ms=3.0))

    assert verdict.outcome == "fail"
    assert verdict.line().startswith("latency FAIL: 4 ms [3.98")


def test_a_limit_inside_the_interval_is_inconclusive(make_pairs) -> None:
    """A limit that the interval straddles decides nothing, and the verdict says what to do."""
    pairs = make_pairs([8.0] * 10, [4.0 * factor for factor in SPREAD])

    (verdict,) = judge(LatencyEvidence(paired=pairs, limit_ms=4.005))

    assert verdict.outcome == "inconclusive"
    assert "the limit lies inside the interval: measure more pairs" in verdict.line()


@pytest.mark.parametrize(
    ("least", "outcome"), [(1.9, "pass"), (1.999, "inconclusive"), (2.1, "fail")]
)
def test_speedup_is_judged_by_its_lower_end(make_pairs, least: float, outcome: str) -> None:
    """A speedup of 2 within 1 % passes 1.9, fails 2.1, and cannot tell 1.999."""
    pairs = make_pairs([8.0 * factor for factor in SPREAD], [4.0] * 10)

    (verdict,) = judge(LatencyEvidence(paired=pairs, least_speedup=least))

    assert (verdict.gate, verdict.outcome, verdict.unit) == ("speedup", outcome, "x")
    assert verdict.observed == pytest.approx(2.0, abs=1e-3)
    assert verdict.interval is not None
    assert verdict.interval[0] < 1.999 < verdict.interval[1]
    assert verdict.count == 10


def test_a_speedup_is_dense_over_pruned(make_pairs) -> None:
    """A candidate twice as slow as the baseline has a speedup of one half."""
    (verdict,) = judge(LatencyEvidence(paired=make_pairs([4.0] * 5, [8.0] * 5), least_speedup=1.0))

    assert verdict.observed == pytest.approx(0.5)
    assert verdict.outcome == "fail"


def test_both_limits_give_two_verdicts(make_pairs) -> None:
    """A limit in ms and a speedup are judged each for itself."""
    pairs = make_pairs([8.0] * 5, [4.0] * 5)

    verdicts = judge(LatencyEvidence(paired=pairs, limit_ms=3.0, least_speedup=1.5))

    assert [(v.gate, v.outcome) for v in verdicts] == [("latency", "fail"), ("speedup", "pass")]


@pytest.mark.parametrize(
    ("percentile", "runs", "needed"), [(50.0, 10, 11), (90.0, 63, 64), (99.0, 661, 662)]
)
def test_a_percentile_without_its_runs_is_not_claimed(
    make_pairs, percentile: float, runs: int, needed: int
) -> None:
    """One run fewer than LoadGen's rule and no number is printed; with it, one is."""
    short = make_pairs([8.0] * 3, [4.0] * 3, runs=runs)
    enough = make_pairs([8.0] * 3, [4.0] * 3, runs=needed)

    (refused,) = judge(LatencyEvidence(paired=short, limit_ms=5.0, percentile=percentile))
    (judged,) = judge(LatencyEvidence(paired=enough, limit_ms=5.0, percentile=percentile))

    assert (refused.outcome, refused.observed) == ("inconclusive", None)
    assert refused.why == (
        f"p{percentile:g} needs {needed} runs a process at 99%, got {runs}. "
        f"Set least_runs to {needed} or more."
    )
    assert judged.outcome == "pass"


def test_other_percentiles_have_their_own_names(make_pairs) -> None:
    """A p90 limit and a median limit in one report cannot be mistaken for each other."""
    evidence = LatencyEvidence(
        paired=make_pairs([8.0] * 3, [4.0] * 3), limit_ms=5.0, least_speedup=1.5, percentile=90.0
    )

    assert [verdict.gate for verdict in judge(evidence)] == ["latency_p90", "speedup_p90"]


def test_one_pair_decides_nothing(make_pairs) -> None:
    """With a single pair there is no interval, so there is no verdict but inconclusive."""
    (verdict,) = judge(LatencyEvidence(paired=make_pairs([8.0], [4.0]), least_speedup=1.5))

    assert (verdict.outcome, verdict.observed) == ("inconclusive", None)
    assert "needs 2 pairs of processes, got 1" in verdict.line()


def test_evidence_without_a_limit_is_refused(make_pairs) -> None:
    """Nothing to judge against is a mistake of the caller, not a pass."""
    with pytest.raises(UsageError, match="expected limit_ms or least_speedup, got neither"):
        LatencyEvidence(paired=make_pairs([8.0], [4.0]))
