"""The vowels sample from end to end: the recipe as it is committed, at five seeds."""

from __future__ import annotations

import five_seeds
import numpy as np
import pytest


@pytest.mark.first
def test_half_the_arithmetic_costs_at_most_two_points(tmp_path, record_property):
    """Five runs halve the multiply-accumulates, proved, and lose at most 2 points pooled."""
    runs = five_seeds.runs_of("vowels", tmp_path)

    pooled = five_seeds.pooled_law("vowels", runs, lambda line: record_property("pooled", line))

    assert pooled.drop <= 0.02, pooled.line("vowels")
    # Seeds that all gave the same network would be one run, not five.
    assert len({each.right.tobytes() for each in runs}) > 1


def test_pooled_drop_is_the_mean_of_the_seeds_drops():
    """The pooled drop is the mean of the seeds' own drops, inside its interval."""
    rng = np.random.default_rng(0)
    dense_right, pruned_right = rng.random(200) < 0.9, rng.random((5, 200)) < 0.8

    pooled = five_seeds.pooled_drop(dense_right, pruned_right)

    assert pooled.drop == pytest.approx(dense_right.mean() - pruned_right.mean())
    assert pooled.low < pooled.drop < pooled.high


def test_pooled_interval_covers_as_often_as_it_says():
    """Over 400 sets of seeds that agree with one another, the interval holds the truth 92-98 %."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        dense_right = rng.random(300) < 0.95
        hard = rng.random(300) < 0.10  # the same samples are hard for every seed
        pruned_right = dense_right & ~(hard & (rng.random((5, 300)) < 0.5))
        pooled = five_seeds.pooled_drop(dense_right, pruned_right)
        covered += pooled.low <= 0.95 * 0.10 * 0.5 <= pooled.high

    assert 0.92 <= covered / 400 <= 0.98
