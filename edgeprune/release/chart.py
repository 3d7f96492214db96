"""Geometry of the report's charts: numbers to positions. The drawing is the template's.

A chart is 360 x 220 units, so that its text is legible at the width of a phone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgeprune.release.report import Metric, Report, Round
from edgeprune.release.wording import milliseconds, percent, score

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 14.0, 184.0

Style: TypeAlias = Literal["recovered", "removed", "repaired", "dense", "rejected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point, the shape it is drawn as, and what it says when pointed at."""

    x: float
    y: float
    style: Style
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of points; `lines` join marks of one style, as `x,y x,y`."""

    title: str
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    lines: tuple[tuple[Style, str], ...]
    limit: Tick | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear map from a range of values to a range of positions."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The position of a value, to a tenth of a unit."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def nice_ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """At most `most` + 1 round values from at or below `low` to at or above `high`.

    (0.0, 1.0) -> 0, 0.2, 0.4, 0.6, 0.8, 1.0; (0.885, 0.913) -> 0.88, 0.89, 0.9, 0.91, 0.92.
    """
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return tuple(round(index * step, 12) for index in range(first, max(last, first + 1) + 1))


def accuracy_chart(report: Report) -> Chart | None:
    """Validation accuracy by round, right after the removal, repaired, recovered; then finally."""
    values = [value for row in report.rounds for value in _taken(row)]
    if not values:
        return None
    guard, final = report.guard, _final(report)
    if final is not None:
        values.append(final[1])
    if guard is not None:
        values += [guard.dense_accuracy, guard.dense_accuracy - guard.max_accuracy_drop]
    y, y_ticks = _vertical(values, report.metric)
    numbers = ["dense", *(str(row.round) for row in report.rounds)]
    numbers += [] if final is None else ["final"]
    x = Axis(low=-0.3, high=len(numbers) - 0.7, start=LEFT, end=RIGHT)
    marks = [] if guard is None else [_dense_mark(x.at(0), y, guard.dense_accuracy, report.metric)]
    for index, row in enumerate(report.rounds, start=1):
        for style, value in _moments(row):
            said = f"round {row.round}, {style}: {score(value, report.metric)}"
            marks.append(Mark(x=x.at(index), y=y.at(value), style=style, text=said))
    if final is not None:
        style, value = final
        said = f"final training: {score(value, report.metric)}"
        marks.append(Mark(x=x.at(len(numbers) - 1), y=y.at(value), style=style, text=said))
    return Chart(
        title="Accuracy on validation, round by round",
        x_title="round",
        x_ticks=tuple(Tick(at=x.at(i), text=text) for i, text in enumerate(numbers)),
        y_ticks=y_ticks,
        marks=tuple(marks),
        lines=_lines(marks),
        limit=_limit(report, y),
    )


def tradeoff_chart(report: Report) -> Chart | None:
    """Accuracy after recovery against what is left of the cost: latency where it was measured."""
    costs = _costs(report)
    guard = report.guard
    kept = [
        (row, cost, row.accuracy.recovered)
        for row, cost in zip(report.rounds, costs.values, strict=True)
        if cost is not None and row.accuracy.recovered is not None
    ]
    if not kept:
        return None
    values = [value for _, _, value in kept]
    final, at = _final(report), next((c for r, c, _ in reversed(kept) if r.accepted), None)
    if final is not None:
        values.append(final[1])
    if guard is not None:
        values += [guard.dense_accuracy, guard.dense_accuracy - guard.max_accuracy_drop]
    y, y_ticks = _vertical(values, report.metric)
    places = [cost for _, cost, _ in kept] + ([costs.dense] if costs.dense is not None else [])
    x, x_ticks = _horizontal(places, costs)
    marks = []
    if guard is not None and costs.dense is not None:
        marks.append(_dense_mark(x.at(costs.dense), y, guard.dense_accuracy, report.metric))
    for row, cost, value in kept:
        style: Style = "recovered" if row.accepted else "rejected"
        said = f"round {row.round}: {score(value, report.metric)} at {costs.say(cost)}"
        marks.append(Mark(x=x.at(cost), y=y.at(value), style=style, text=said))
    if final is not None and at is not None:
        style, value = final
        said = f"final training: {score(value, report.metric)} at {costs.say(at)}"
        marks.append(Mark(x=x.at(at), y=y.at(value), style=style, text=said))
    return Chart(
        title=f"Accuracy against {costs.title}",
        x_title=costs.title,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        marks=tuple(marks),
        lines=_lines(marks),
        limit=_limit(report, y),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What each round costs, in one unit; `dense` is None where that is not known."""

    title: str
    unit: Literal["ms", "share"]
    dense: float | None
    values: tuple[float | None, ...]

    def say(self, value: float) -> str:
        """A cost with its unit."""
        return milliseconds(value) if self.unit == "ms" else percent(value, 0)


def _costs(report: Report) -> Costs:
    """Latency if a round has it, else the share of MACs, else of units kept."""
    dense = report.dense
    if any(row.latency_ms is not None for row in report.rounds):
        return Costs(
            title="latency, ms",
            unit="ms",
            dense=None if dense.latency_ms is None else dense.latency_ms.p50,
            values=tuple(row.latency_ms for row in report.rounds),
        )
    if dense.macs and any(row.macs is not None for row in report.rounds):
        shares = [None if row.macs is None else row.macs / dense.macs for row in report.rounds]
        title = "multiply-accumulates left"
        return Costs(title=title, unit="share", dense=1.0, values=tuple(shares))
    return Costs(
        title="units kept",
        unit="share",
        dense=1.0,
        values=tuple(row.keep_fraction for row in report.rounds),
    )


def _vertical(values: list[float], metric: Metric) -> tuple[Axis, tuple[Tick, ...]]:
    ticks = nice_ticks(min(values), max(values))
    axis = Axis(low=ticks[0], high=ticks[-1], start=BOTTOM, end=TOP)
    digits = 0 if ticks[1] - ticks[0] >= 0.01 - 1e-12 else 1
    texts = (score(value, metric, digits).replace(" ", "\u202f") for value in ticks)
    return axis, tuple(
        Tick(at=axis.at(value), text=text) for value, text in zip(ticks, texts, strict=True)
    )


def _horizontal(places: list[float], costs: Costs) -> tuple[Axis, tuple[Tick, ...]]:
    ticks = nice_ticks(0.0 if costs.unit == "share" else min(places), max(places))
    axis = Axis(low=ticks[0], high=ticks[-1], start=LEFT, end=RIGHT - 8)
    texts = (f"{value:g}" if costs.unit == "ms" else percent(value, 0) for value in ticks)
    return axis, tuple(
        Tick(at=axis.at(value), text=text.replace(" ", "\u202f"))
        for value, text in zip(ticks, texts, strict=True)
    )


def _moments(row: Round) -> list[tuple[Style, float]]:
    """The moments of a round that were measured; a refused round ends in a cross."""
    last: Style = "recovered" if row.accepted else "rejected"
    moments: list[tuple[Style, float | None]] = [
        ("removed", row.accuracy.removed),
        ("repaired", row.accuracy.repaired),
        (last, row.accuracy.recovered),
    ]
    return [(style, value) for style, value in moments if value is not None]


def _final(report: Report) -> tuple[Style, float] | None:
    """The final training's accuracy; a cross where it was undone, None where it is not known."""
    if report.final is None or report.final.accuracy is None:
        return None
    return "recovered" if report.final.accepted else "rejected", report.final.accuracy


def _taken(row: Round) -> list[float]:
    return [value for _, value in _moments(row)]


def _dense_mark(x: float, y: Axis, accuracy: float, metric: Metric) -> Mark:
    return Mark(x=x, y=y.at(accuracy), style="dense", text=f"dense: {score(accuracy, metric)}")


def _limit(report: Report, y: Axis) -> Tick | None:
    guard = report.guard
    if guard is None:
        return None
    lowest = guard.dense_accuracy - guard.max_accuracy_drop
    return Tick(at=y.at(lowest), text=f"guard {score(lowest, report.metric)}")


def _lines(marks: list[Mark]) -> tuple[tuple[Style, str], ...]:
    """Accepted rounds are joined from the dense model on; the other moments each by itself."""
    joined: list[tuple[Style, tuple[Style, ...]]] = [
        ("removed", ("removed",)),
        ("repaired", ("repaired",)),
        ("recovered", ("dense", "recovered")),
    ]
    lines = []
    for style, members in joined:
        places = [f"{mark.x},{mark.y}" for mark in marks if mark.style in members]
        if len(places) > 1:
            lines.append((style, " ".join(places)))
    return tuple(lines)
