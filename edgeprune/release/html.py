"""The report as one HTML page: nothing is loaded, nothing runs, light and dark, phone and paper."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources

import jinja2

from edgeprune.release import wording
from edgeprune.release.chart import accuracy_chart, tradeoff_chart
from edgeprune.release.formats import report_format
from edgeprune.release.report import PinRow, Report

TEMPLATE = "report.html.j2"
MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PinReason:
    """Pins of one reason: how many, at which lines, and which units."""

    reason: str
    count: int
    where: tuple[str, ...]
    units: tuple[str, ...]


@report_format("html", file="report.html")
def html(report: Report) -> str:
    """A self-contained page: verdict, gates, key figures, rounds, widths, pins, proof, place."""
    template = _template()
    return template.render(
        report=report,
        marks=MARKS,
        words=wording.OUTCOME_WORDS,
        sentence=wording.sentence_of_outcome(report),
        headline=wording.headline(report),
        comparison=wording.comparison(report.dense, report.pruned, report.metric),
        charts=tuple(c for c in (accuracy_chart(report), tradeoff_chart(report)) if c is not None),
        widest=max((group.before for group in report.groups), default=1) or 1,
        pins=pin_reasons(report.pins),
        proof=wording.proof_sentences(report),
    )


def pin_reasons(pins: tuple[PinRow, ...]) -> tuple[PinReason, ...]:
    """Pins gathered by reason, the most frequent first."""
    counted = Counter(pin.reason for pin in pins)
    return tuple(
        PinReason(
            reason=reason,
            count=count,
            where=tuple(dict.fromkeys(p.where for p in pins if p.reason == reason and p.where)),
            units=tuple(dict.fromkeys(p.unit for p in pins if p.reason == reason)),
        )
        for reason, count in counted.most_common()
    )


@cache
def _template() -> jinja2.Template:
    source = (resources.files("edgeprune.release") / TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        faster=wording.faster,
        figure=wording.figure,
        percent=wording.percent,
        score=wording.score,
        count=wording.count,
        quantity=wording.quantity,
        span=wording.span,
        bracket=wording.bracket,
        change=wording.change,
    )
    return environment.from_string(source)
