"""Verdicts: their line, their exit code, and how an interval decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.gates import Verdict, exit_code
from edgeprune.gates.verdict import by_interval

FAILED = Verdict(
    gate="latency",
    outcome="fail",
    observed=9.4,
    limit=8.0,
    unit="ms",
    interval=(9.2, 9.7),
    count=20,
    why="median, n=200, ABBA, 4 threads",
)


def test_a_failed_verdict_prints_everything() -> None:
    """The line holds gate, outcome, observation, interval, relation, limit and how."""
    expected = "latency FAIL: 9.4 ms [9.2, 9.7] > 8 ms (median, n=200, ABBA, 4 threads)"

    assert FAILED.line() == expected


def test_a_verdict_without_an_observation_prints_why() -> None:
    """Where nothing may be claimed, no number is printed: only what is missing."""
    why = "p99 needs 662 runs a process at 99 %, got 100. Set least_runs to 662 or more."
    verdict = replace(FAILED, outcome="inconclusive", observed=None, interval=None, why=why)

    assert verdict.line() == f"latency INCONCLUSIVE: {why}"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("x", "latency PASS: 2.346x > 2x (how)"),
        ("fraction", "latency PASS: 2.346 > 2 (how)"),
        ("MiB", "latency PASS: 2.346 MiB > 2 MiB (how)"),
    ],
)
def test_units_are_printed_as_people_write_them(unit: str, expected: str) -> None:
    """x is attached, a fraction is bare, anything else stands after a space."""
    verdict = replace(
        FAILED, outcome="pass", observed=2.3456, limit=2.0, unit=unit, interval=None, why="how"
    )

    assert verdict.line() == expected


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ((), 0),
        (("pass", "pass"), 0),
        (("pass", "inconclusive"), 3),
        (("inconclusive", "fail", "pass"), 1),
        (("fail",), 1),
    ],
)
def test_exit_code_is_the_worst_outcome(outcomes: tuple[str, ...], code: int) -> None:
    """A failure beats an inconclusive verdict, which beats a pass."""
    assert exit_code(replace(FAILED, outcome=outcome) for outcome in outcomes) == code


NUMBERS = st.floats(min_value=-1e6, max_value=1e6)


@given(low=NUMBERS, width=st.floats(min_value=0, max_value=1e3), limit=NUMBERS)
@settings(deadline=None, max_examples=60)
def test_an_interval_decides_unless_the_limit_is_inside(
    low: float, width: float, limit: float
) -> None:
    """At most: pass iff all of it is at or under the limit, fail iff all of it is over."""
    high = low + width
    outcome = by_interval((low, high), limit, at_most=True)

    assert (outcome == "pass") == (high <= limit)
    assert (outcome == "fail") == (low > limit)


@given(low=NUMBERS, width=st.floats(min_value=0, max_value=1e3), limit=NUMBERS)
@settings(deadline=None, max_examples=60)
def test_a_lower_bound_is_an_upper_bound_mirrored(low: float, width: float, limit: float) -> None:
    """Judging x >= limit is judging -x <= -limit."""
    high = low + width

    mirrored = by_interval((-high, -low), -limit, at_most=True)
    assert by_interval((low, high), limit, at_most=False) == mirrored
