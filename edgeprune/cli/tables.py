"""Results as Rich tables. User text is never read as markup."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from edgeprune.release.report import EXIT_CODES, Report, VerdictRow
from edgeprune.release.wording import (
    OUTCOME_WORDS,
    comparison,
    quantity,
    sentence_of_outcome,
    span,
)

_STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}


def wrapped(text: str, width: int, first: int = 0, rest: int = 0) -> list[Text]:
    """Lines of at most `width` columns, indented by `first` and `rest`; a name is never broken."""
    return [
        Text(line)
        for line in textwrap.wrap(
            text,
            width=max(width, 40),
            initial_indent=" " * first,
            subsequent_indent=" " * rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> Table:
    """A plain table; `right` holds an `r` for every right-aligned column, e.g. `l r r`."""
    made = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    sides = right.split() or ["l"] * len(head)
    for name, side in zip(head, sides, strict=True):
        made.add_column(
            name,
            justify="right" if side == "r" else "left",
            header_style="dim",
            overflow="fold",
            no_wrap=side == "r",
        )
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def verdict_banner(report: Report) -> Text:
    """'Passed. All 4 gates are met.' in the outcome's colour."""
    words = f"{OUTCOME_WORDS[report.outcome]}. {sentence_of_outcome(report)}"
    return Text(words, style=_STYLES[report.outcome])


def figures_table(report: Report) -> Table:
    """Dense against pruned."""
    rows = comparison(report.dense, report.pruned, report.metric)
    return table("", ("", "dense", "pruned", "change"), rows, "l r r r")


def gates_table(report: Report) -> Table:
    """One line a gate, its outcome coloured."""
    return verdicts_table(report.verdicts)


def outcome_text(exit_code: int) -> str:
    """The outcome behind an exit code of gates: 0 pass, 1 fail, 3 inconclusive."""
    return {code: outcome for outcome, code in EXIT_CODES.items()}[exit_code]


def verdicts_table(verdicts: Sequence[VerdictRow]) -> Table:
    """One line a verdict, its outcome coloured."""
    made = table("", ("gate", "outcome", "observed", "limit", "why"), (), "l l r r l")
    for row in verdicts:
        observed = f"{quantity(row.observed, row.unit)} {span(row.interval, row.unit)}".rstrip()
        made.add_row(
            Text(row.gate),
            Text(row.outcome, style=_STYLES[row.outcome]),
            Text(observed),
            Text(quantity(row.limit, row.unit)),
            Text(row.why),
        )
    return made
