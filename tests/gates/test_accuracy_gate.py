"""The accuracy gate and its paired interval, against published values and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeprune.errors import DataError
from edgeprune.gates import AccuracyEvidence, PairedCounts, judge, paired_counts
from edgeprune.gates.accuracy import paired_interval

CELL = st.integers(min_value=0, max_value=500)


def counts(both: int, dense_only: int, pruned_only: int, neither: int) -> PairedCounts:
    """A two by two table."""
    return PairedCounts(both=both, dense_only=dense_only, pruned_only=pruned_only, neither=neither)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        (counts(14, 5, 0, 22), 0.011, 0.226),  # Altman et al., Statistics with Confidence, tab. 6.2
        (counts(1, 1, 7, 12), -0.507, -0.026),  # Fagerland et al. 2014, airway hyper-responsiveness
    ],
)
def test_interval_reproduces_published_examples(
    table: PairedCounts, low: float, high: float
) -> None:
    """Newcombe's method 10 gives the intervals printed in two textbooks."""
    assert paired_interval(table, 0.95) == pytest.approx((low, high), abs=5e-4)


@given(a=CELL, b=CELL, c=CELL, d=CELL)
@settings(deadline=None, max_examples=60)
def test_interval_of_opposed_models_follows_scipys_wilson(a: int, b: int, c: int, d: int) -> None:
    """Where being right is negatively correlated, Wilson (SciPy) and Pearson (NumPy) suffice."""
    assume(a * d < b * c)
    n = a + b + c + d
    right = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [a, b, c, d], axis=0)
    phi = np.corrcoef(right[:, 0], right[:, 1])[0, 1]
    dense, pruned = right.mean(axis=0)
    dense_ci = scipy.stats.binomtest(a + b, n).proportion_ci(0.9, method="wilson")
    pruned_ci = scipy.stats.binomtest(a + c, n).proportion_ci(0.9, method="wilson")

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(one**2 - 2 * phi * one * other + other**2))

    low = dense - pruned - reach(dense - dense_ci.low, pruned_ci.high - pruned)
    high = dense - pruned + reach(pruned - pruned_ci.low, dense_ci.high - dense)
    expected = (max(-1.0, low), min(1.0, high))
    assert paired_interval(counts(a, b, c, d), 0.9) == pytest.approx(expected, abs=1e-9)


@given(a=CELL, b=CELL, c=CELL, d=CELL)
@settings(deadline=None, max_examples=60)
def test_swapping_the_models_mirrors_the_interval(a: int, b: int, c: int, d: int) -> None:
    """The interval of pruned minus dense is that of dense minus pruned, turned over."""
    assume(a + b + c + d > 0)
    low, high = paired_interval(counts(a, b, c, d), 0.95)

    assert paired_interval(counts(a, c, b, d), 0.95) == pytest.approx((-high, -low), abs=1e-12)


@given(a=CELL, b=CELL, c=CELL, d=CELL)
@settings(deadline=None, max_examples=60)
def test_interval_holds_the_drop_and_grows_with_confidence(a: int, b: int, c: int, d: int) -> None:
    """-1 <= low <= drop <= high <= 1, and 99 % is never narrower than 90 %."""
    assume(a + b + c + d > 0)
    table = counts(a, b, c, d)
    low, high = paired_interval(table, 0.90)
    lower, higher = paired_interval(table, 0.99)

    assert -1 <= low <= table.drop + 1e-12
    assert table.drop - 1e-12 <= high <= 1
    assert lower <= low + 1e-12
    assert high <= higher + 1e-12


def test_interval_agrees_with_a_paired_bootstrap() -> None:
    """On 4,000 samples the closed form is within .001 of resampling the pairs."""
    table = counts(3400, 150, 90, 360)
    outcome = np.repeat([0, 1, -1, 0], [3400, 150, 90, 360])
    rng = np.random.default_rng(0)
    drops = [rng.choice(outcome, outcome.size).mean() for _ in range(2000)]

    expected = np.percentile(drops, [2.5, 97.5])
    assert paired_interval(table, 0.95) == pytest.approx(tuple(expected), abs=1e-3)


def test_counts_are_where_each_model_is_right() -> None:
    """Four samples, right by both, dense only, pruned only, neither."""
    dense = np.array([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.9, 0.1]])
    pruned = np.array([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.8, 0.2]])
    targets = np.array([0, 1, 1, 1])

    assert paired_counts(dense, pruned, targets) == counts(1, 1, 1, 1)


@pytest.mark.parametrize(
    ("dense", "targets"),
    [((3, 2), (4,)), ((4, 2, 2), (4,)), ((4, 2), (4, 1)), ((0, 2), (0,))],
)
def test_counts_refuse_other_tasks(dense: tuple[int, ...], targets: tuple[int, ...]) -> None:
    """Shapes that are not scores (N, C) for targets (N,) are named and refused."""
    with pytest.raises(DataError, match=r"expected scores \(N, C\) for targets \(N,\), got"):
        paired_counts(np.zeros(dense), np.zeros(dense), np.zeros(targets, np.int64))


def evidence(table: PairedCounts, **change: float) -> AccuracyEvidence:
    """Evidence whose metric is the share of right samples, limit one point."""
    return AccuracyEvidence(
        dense=(table.both + table.dense_only) / table.samples,
        pruned=(table.both + table.pruned_only) / table.samples,
        counts=table,
        **{"largest_drop": 0.01, **change},
    )


def test_the_observed_drop_is_judged_and_its_interval_printed() -> None:
    """A drop of half a point passes one point though its interval may reach beyond."""
    (verdict,) = judge(evidence(counts(900, 30, 25, 45)))

    assert (verdict.outcome, verdict.unit, verdict.count) == ("pass", "fraction", 1000)
    assert verdict.observed == pytest.approx(0.005)
    assert verdict.interval is not None
    assert verdict.interval[1] > 0.01
    assert verdict.line() == (
        "accuracy PASS: 0.005 [-0.009918, 0.02008] <= 0.01 (drop from 0.93 to 0.925 on 1000 "
        "samples; 95% paired interval, the observed drop is judged)"
    )


def test_a_drop_equal_to_the_limit_passes() -> None:
    """0.91 - 0.90 is more than 0.01 in binary; a hundred of 10,000 samples are not."""
    (verdict,) = judge(evidence(counts(9000, 100, 0, 900)))
    (without_counts,) = judge(AccuracyEvidence(dense=0.91, pruned=0.90, largest_drop=0.01))

    assert verdict.outcome == "pass"
    assert without_counts.outcome == "pass"


def test_a_larger_drop_fails() -> None:
    """One sample over the limit fails."""
    (verdict,) = judge(evidence(counts(8999, 101, 0, 900)))

    assert verdict.outcome == "fail"
    assert "> 0.01" in verdict.line()


@pytest.mark.parametrize(
    ("limit", "outcome"), [(0.03, "pass"), (0.01, "inconclusive"), (-0.02, "fail")]
)
def test_confidence_judges_the_bound(limit: float, outcome: str) -> None:
    """With a confidence, only an interval wholly on one side of the limit decides."""
    (verdict,) = judge(evidence(counts(900, 30, 25, 45), largest_drop=limit, confidence=0.95))

    assert verdict.outcome == outcome


def test_without_labels_nothing_is_claimed() -> None:
    """No labels: inconclusive, with the reason, and no number."""
    (verdict,) = judge(AccuracyEvidence(dense=None, pruned=None, largest_drop=0.01))

    assert (verdict.outcome, verdict.observed, verdict.interval) == ("inconclusive", None, None)
    assert verdict.line() == (
        "accuracy INCONCLUSIVE: the split has no labels, so accuracy is unknown. Give its targets."
    )


def test_a_metric_of_ones_own_has_no_interval() -> None:
    """A metric that is not a share of right samples is judged as observed, and says so."""
    (verdict,) = judge(AccuracyEvidence(dense=0.8, pruned=0.7, largest_drop=0.01, samples=50))

    assert (verdict.outcome, verdict.interval, verdict.count) == ("fail", None, 50)
    assert "no interval: the metric is not a share of samples" in verdict.line()


def test_a_bound_without_an_interval_is_inconclusive() -> None:
    """Confidence asked of a metric without an interval cannot be answered."""
    (verdict,) = judge(AccuracyEvidence(dense=0.8, pruned=0.8, largest_drop=0.01, confidence=0.95))

    assert verdict.outcome == "inconclusive"
    assert "no bound can be judged. Leave confidence out" in verdict.line()


def test_a_metric_that_is_not_a_number_decides_nothing() -> None:
    """NaN is neither within the limit nor beyond it."""
    (verdict,) = judge(AccuracyEvidence(dense=0.8, pruned=float("nan"), largest_drop=0.01))

    assert verdict.outcome == "inconclusive"
    assert "nan for the pruned one" in verdict.line()


def test_counts_of_another_metric_are_refused() -> None:
    """Counts that do not add up to the metric's drop would print a wrong interval."""
    with pytest.raises(DataError, match="expected the drop of the metric, 0.3, got 0.005"):
        AccuracyEvidence(dense=0.8, pruned=0.5, largest_drop=0.01, counts=counts(900, 30, 25, 45))
