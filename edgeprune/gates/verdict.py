"""A verdict: what was observed, against which limit, how sure, and why. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["pass", "fail", "inconclusive"]

_FAILED, _INCONCLUSIVE, _PASSED = 1, 3, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One gate's answer.

    `observed`, `limit` and `interval` are in `unit` (`ms`, `MiB`, `x`, `fraction` or `std`);
    `observed` and `interval` are None where nothing may be claimed. `count` is the number of
    independent samples behind `observed`: pairs, processes, or test samples. `why` says how
    `observed` came about or, if the outcome is inconclusive, what is missing and what to do.
    """

    gate: str
    outcome: Outcome
    observed: float | None
    limit: float
    unit: str
    interval: tuple[float, float] | None
    count: int | None
    why: str

    def line(self) -> str:
        """The verdict in one line.

        latency FAIL: 9.4 ms [9.2, 9.7] > 8 ms (median, 20 processes of 400 runs, 1 thread)
        latency_p99 INCONCLUSIVE: p99 needs 662 runs a process at 99 %, got 100. ...
        """
        head = f"{self.gate} {self.outcome.upper()}:"
        if self.observed is None:
            return f"{head} {self.why}"
        interval = ""
        if self.interval is not None:
            interval = f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        relation = ">" if self.observed > self.limit else "<="
        return (
            f"{head} {_with_unit(self.observed, self.unit)}{interval} {relation} "
            f"{_with_unit(self.limit, self.unit)} ({self.why})"
        )


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """1 if a gate failed, else 3 if one is inconclusive, else 0."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if "fail" in outcomes:
        return _FAILED
    return _INCONCLUSIVE if "inconclusive" in outcomes else _PASSED


def by_interval(interval: tuple[float, float], limit: float, *, at_most: bool) -> Outcome:
    """Judge a limit by a whole interval: inconclusive when the interval straddles it.

    by_interval((7.1, 7.9), 8.0, at_most=True) is a pass, (8.1, 9.0) a fail, (7.9, 8.1) neither.
    """
    low, high = interval
    if (high <= limit) if at_most else (low >= limit):
        return "pass"
    if (low > limit) if at_most else (high < limit):
        return "fail"
    return "inconclusive"


def _with_unit(value: float, unit: str) -> str:
    if unit == "fraction":
        return f"{value:.4g}"
    return f"{value:.4g}{unit}" if unit == "x" else f"{value:.4g} {unit}"
