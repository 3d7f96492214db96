"""What a dry run found, as tables, as one line and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from edgeprune.cli.session import JsonValue
from edgeprune.cli.tables import table
from edgeprune.release.wording import count, percent, size

if TYPE_CHECKING:
    from edgeprune.pipeline.dry_run import Outlook, Span


def tables(outlook: Outlook) -> tuple[Table | str, ...]:
    """Rounds, the widest changes of width, notes, and the estimates."""
    dense = outlook.dense
    rounds = [("dense", "100.00 %", count(dense.params), count(dense.macs))]
    rounds += [
        (
            f"round {row.number}",
            percent(row.unit_keep_fraction),
            count(row.cost.params),
            count(row.cost.macs),
        )
        for row in outlook.rounds
    ]
    widths = [
        (group.name, group.kind, str(group.width), str(len(group.keep)))
        for group in outlook.plan.groups
    ]
    times = [
        ("training", _duration(outlook.training_seconds)),
        ("loading, analysis, proof, validation, export", _duration(outlook.checking_seconds)),
        ("latency", _span(outlook.measuring_seconds)),
        ("memory at its peak", size(outlook.peak_memory_bytes)),
    ]
    return (
        table("Rounds", ("", "units kept", "parameters", "MACs"), rounds, "l r r r"),
        "",
        table("Widths at the end", ("group", "unit", "before", "after"), widths, "l l r r"),
        "",
        table("Estimates", ("", ""), times, "l r"),
        *(f"Note: {note}." for note in outlook.notes),
        "",
    )


def headline(outlook: Outlook) -> str:
    """What the run would leave, and how long it would take."""
    last = outlook.rounds[-1].cost
    return (
        f"{outlook.model} for {outlook.target}: {_share(last.macs, outlook.dense.macs)} of the "
        f"MACs, {_share(last.params, outlook.dense.params)} of the parameters would stay; about "
        f"{_span(outlook.seconds)}; nothing was written"
    )


def as_json(outlook: Outlook) -> JsonValue:
    """The same as one JSON document."""
    return {
        "model": outlook.model,
        "target": outlook.target,
        "dense": {
            "params": outlook.dense.params,
            "macs": outlook.dense.macs,
            "validation_accuracy": outlook.dense_accuracy,
        },
        "rounds": [
            {
                "round": row.number,
                "keep_fraction": row.unit_keep_fraction,
                "params": row.cost.params,
                "macs": row.cost.macs,
            }
            for row in outlook.rounds
        ],
        "groups": [
            {"name": g.name, "kind": g.kind, "before": g.width, "after": len(g.keep)}
            for g in outlook.plan.groups
        ],
        "pins": outlook.pins,
        "notes": list(outlook.notes),
        "estimate": {
            "seconds": outlook.seconds.most,
            "least_seconds": outlook.seconds.least,
            "training_seconds": outlook.training_seconds,
            "checking_seconds": outlook.checking_seconds,
            "measuring_seconds": outlook.measuring_seconds.most,
            "peak_memory_bytes": outlook.peak_memory_bytes,
        },
    }


def _share(after: int, before: int) -> str:
    return percent(after / before if before else None, 0)


def _span(seconds: Span) -> str:
    """'20 s to 1 min 5 s', or one duration where both ends read the same."""
    ends = dict.fromkeys((_duration(seconds.least), _duration(seconds.most)))
    return " to ".join(ends)


def _duration(seconds: float) -> str:
    """75 -> '1 min 15 s', 5400 -> '1 h 30 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
