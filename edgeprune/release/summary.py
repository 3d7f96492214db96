"""The report as GitHub-flavoured Markdown, for a job summary or a pull request."""

from __future__ import annotations

import re

from edgeprune.release.formats import report_format
from edgeprune.release.report import Report
from edgeprune.release.wording import (
    OUTCOME_WORDS,
    comparison,
    figure,
    headline,
    percent,
    quantity,
    score,
    sentence_of_outcome,
    span,
)

_MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


@report_format("summary", file="summary.md")
def summary(report: Report) -> str:
    """Verdict first, then gates, key figures and rounds."""
    title = f"{_MARKS[report.outcome]} edgeprune: {OUTCOME_WORDS[report.outcome]}"
    blocks = [
        f"## {title}",
        f"{_escape(sentence_of_outcome(report))} {_escape(_capital(headline(report)))}.",
        _table(
            ("Gate", "Outcome", "Observed", "Limit", "Why"),
            [
                (
                    verdict.gate,
                    f"{_MARKS[verdict.outcome]} {verdict.outcome}",
                    f"{quantity(verdict.observed, verdict.unit)} "
                    f"{span(verdict.interval, verdict.unit)}",
                    quantity(verdict.limit, verdict.unit),
                    verdict.why,
                )
                for verdict in report.verdicts
            ],
        ),
        _table(
            ("", "Dense", "Pruned", "Change"),
            list(comparison(report.dense, report.pruned, report.metric)),
        ),
        _table(
            ("Round", "Kept", "Removed", "Recovered", "Proof error", "Accepted"),
            [
                (
                    str(row.round),
                    percent(row.keep_fraction, 0),
                    score(row.accuracy.removed, report.metric),
                    score(row.accuracy.recovered, report.metric),
                    "-" if row.proof is None else figure(row.proof.error, 2),
                    "yes" if row.accepted else "no",
                )
                for row in report.rounds
            ]
            + _final_row(report),
        ),
    ]
    environment = ", ".join(f"{key} {value}" for key, value in report.environment.items())
    if environment:
        blocks.append(f"<sub>{_escape(environment)}</sub>")
    return "\n\n".join(block for block in blocks if block) + "\n"


def _final_row(report: Report) -> list[tuple[str, ...]]:
    if report.final is None:
        return []
    accuracy = score(report.final.accuracy, report.metric)
    return [("final training", "", "", accuracy, "", "yes" if report.final.accepted else "no")]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, or nothing without rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
