"""A complete report to render, and variations of it."""

from __future__ import annotations

from edgeprune.release.report import (
    Figures,
    GroupWidth,
    Guard,
    Latency,
    PinRow,
    Report,
    Round,
    RoundAccuracy,
    RoundProof,
    Speedup,
    VerdictRow,
)

HOSTILE = "<script>alert('&')</script>"


def verdict(gate: str, outcome: str = "pass") -> VerdictRow:
    """A verdict of one gate on an accuracy-like figure."""
    return VerdictRow(
        gate=gate,
        outcome=outcome,
        observed=0.0061,
        limit=0.015,
        unit="fraction",
        interval=(0.002, 0.0103),
        count=10_000,
        why=f"why of {gate}",
    )


def one_round(number: int, *, accepted: bool = True) -> Round:
    """A round whose accuracies fall with its number."""
    return Round(
        round=number,
        criterion="l2",
        keep_fraction=1 - 0.1 * number,
        accuracy=RoundAccuracy(removed=0.9 - 0.1 * number, recovered=0.92 - 0.01 * number),
        proof=RoundProof(error=1e-7 * number, change=0.4, tolerance=1e-4, control=0.05),
        accepted=accepted,
        seconds=12.5,
        macs=1_000_000 // number,
        params=200_000 // number,
    )


def report(*verdicts: VerdictRow, text: str = "MobileNetV2") -> Report:
    """A report with every part filled; `text` stands wherever a user's text may stand."""
    return Report(
        dense=Figures(
            accuracy=0.9183,
            params=243_210,
            macs=11_600_000,
            size_bytes=1_003_520,
            latency_ms=Latency(p50=0.4123),
        ),
        pruned=Figures(
            accuracy=0.9122,
            params=92_110,
            macs=3_600_000,
            size_bytes=431_000,
            latency_ms=Latency(p50=0.158),
        ),
        speedup=Speedup(ratio=2.61, low=2.5, high=2.7, pairs=20),
        guard=Guard(dense_accuracy=0.92, max_accuracy_drop=0.015),
        rounds=(one_round(1), one_round(2), one_round(3, accepted=False)),
        groups=(GroupWidth(name=f"{text}.weight", kind="channel", before=64, after=32),),
        pins=(
            PinRow(unit=f"{text}.head", reason=f"{text}: an output", where="model.py:8"),
            PinRow(unit="other", reason=f"{text}: an output", where="model.py:9"),
        ),
        verdicts=verdicts,
        environment={"model": text, "target": "local", "threads": 1},
    )
