"""Time of the label walk and partition against graph nodes, over the zoo's results: fit and chart.

Near linear: on logarithmic axes the slope of seconds against nodes is about 1; 2 is quadratic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from edgeprune.release.chart import Axis

WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 540, 32, 310
# The slope may not be above this: a tenfold graph takes at most 18 times as long.
STEEPEST = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model: nodes of its graph, and seconds of the walk with the partition."""

    model: str
    nodes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """seconds = factor * nodes ** slope, least squares on logs; 95 % t-interval of slope."""

    factor: float
    slope: float
    low: float
    high: float

    @property
    def is_near_linear(self) -> bool:
        """Whether the fitted growth is at most a little faster than linear."""
        return self.slope <= STEEPEST

    @property
    def said(self) -> str:
        """The fit in words."""
        return (
            f"seconds grow as nodes to the power {self.slope:.2f} "
            f"(95 % interval {self.low:.2f} - {self.high:.2f})"
        )


def rows_of(results: Sequence[dict[str, object]]) -> list[Row]:
    """Rows of zoo results that have `nodes` and `seconds`; `seconds.walk` counts the partition."""
    rows = []
    for number, result in enumerate(results):
        nodes, seconds = result.get("nodes"), result.get("seconds")
        walk = seconds.get("walk") if isinstance(seconds, dict) else None
        if isinstance(nodes, int) and isinstance(walk, int | float) and nodes > 0 and walk > 0:
            name = str(result.get("key", number))
            rows.append(Row(model=name, nodes=nodes, seconds=float(walk)))
    return rows


def read_rows(source: Path) -> list[Row]:
    """Rows from the file that bench/zoo.py writes.

    Raises SystemExit with fewer than three models: no line goes through two points.
    """
    rows = rows_of(json.loads(source.read_text(encoding="utf-8"))["models"])
    if len({row.nodes for row in rows}) < 3:
        raise SystemExit(
            f"reading {source} failed: expected at least three models of different size with "
            f"`nodes` and `seconds.walk`, got {len(rows)} rows. Run the zoo first."
        )
    return rows


def fit(rows: Sequence[Row]) -> Line:
    """Least squares of log seconds on log nodes, with the t-interval of the slope."""
    x = np.log([row.nodes for row in rows])
    y = np.log([row.seconds for row in rows])
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    start = float(y.mean() - slope * x.mean())
    left = y - start - slope * x
    freedom = len(rows) - 2
    error = math.sqrt(float((left**2).sum()) / freedom / spread)
    reach = float(stdtrit(freedom, 0.975)) * error
    return Line(factor=math.exp(start), slope=slope, low=slope - reach, high=slope + reach)


def draw(rows: Sequence[Row], line: Line) -> str:
    """The chart as SVG, both axes logarithmic: a point a model, the fit, and a line of slope 1."""
    nodes, seconds = [row.nodes for row in rows], [row.seconds for row in rows]
    x = _axis(min(nodes), max(nodes), LEFT, RIGHT)
    y = _axis(min(seconds), max(seconds), BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18">Label walk and partition: {line.said}</text>',
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">graph nodes</text>',
        f'<text x="14" y="{(TOP + BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + BOTTOM) / 2})">seconds</text>',
    ]
    for value in _decades(x):
        at = x.at(math.log10(value))
        parts.append(f'<path d="M{at} {TOP}V{BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{at}" y="{BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    for value in _decades(y):
        at = y.at(math.log10(value))
        parts.append(f'<path d="M{LEFT} {at}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{value:g}</text>')
    middle = math.exp(float(np.log(nodes).mean()))
    level = line.factor * middle**line.slope
    for factor, slope, style in (
        (line.factor, line.slope, 'stroke="#1f5fa8" stroke-width="2"'),
        (level / middle, 1.0, 'stroke="#888" stroke-dasharray="5 4"'),
    ):
        ends = (
            f"{x.at(math.log10(n))} {y.at(math.log10(factor * n**slope))}"
            for n in (min(nodes), max(nodes))
        )
        parts.append(f'<path d="M{"L".join(ends)}" fill="none" {style}/>')
    for row in rows:
        at = f'cx="{x.at(math.log10(row.nodes))}" cy="{y.at(math.log10(row.seconds))}"'
        said = f"{_escaped(row.model)}: {row.nodes} nodes, {row.seconds:.3f} s"
        parts.append(
            f'<circle {at} r="3" fill="#1f5fa8" opacity="0.6"><title>{said}</title></circle>'
        )
    parts.append(
        f'<text x="{RIGHT}" y="{BOTTOM - 8}" text-anchor="end" fill="#666">'
        "dashed: linear</text></svg>"
    )
    return "\n".join(parts) + "\n"


def _axis(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis with a little room at both ends."""
    return Axis(low=math.log10(low) - 0.1, high=math.log10(high) + 0.1, start=start, end=end)


def _decades(axis: Axis) -> list[float]:
    """1, 2 and 5 times powers of ten within the axis."""
    powers = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [value for value in values if axis.low <= math.log10(value) <= axis.high]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
