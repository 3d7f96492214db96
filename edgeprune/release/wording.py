"""Figures and outcomes in words, the same in every format."""

from __future__ import annotations

from edgeprune.gates.verdict import Outcome
from edgeprune.release.report import Figures, Metric, Report

OUTCOME_WORDS: dict[Outcome, str] = {
    "pass": "Passed",
    "fail": "Failed",
    "inconclusive": "Inconclusive",
}
NOT_MEASURED = "-"


def count(value: int | None) -> str:
    """1234567 -> '1,234,567'."""
    return NOT_MEASURED if value is None else f"{value:,}"


def percent(share: float | None, digits: int = 2) -> str:
    """0.9123 -> '91.23 %'."""
    return NOT_MEASURED if share is None else f"{100 * share:.{digits}f} %"


def score(value: float | None, metric: Metric, digits: int = 2) -> str:
    """A value of the metric: 0.91 -> '91.00 %'; of one's own, whose unit nobody knows, '0.91'."""
    return percent(value, digits) if metric == "accuracy" else figure(value)


def score_change(before: float | None, after: float | None, metric: Metric) -> str:
    """(0.91, 0.9) -> '-1.00 points'; of a metric of one's own '-0.01'."""
    if metric == "accuracy" or before is None or after is None:
        return points(before, after)
    return f"{after - before:+.4g}"


def milliseconds(value: float | None) -> str:
    """0.12345 -> '0.123 ms'; three significant digits."""
    return NOT_MEASURED if value is None else f"{figure(value, 3)} ms"


def size(size_bytes: int | None) -> str:
    """921600 -> '900 KiB'; 5 MiB and more in MiB."""
    if size_bytes is None:
        return NOT_MEASURED
    kib = size_bytes / 1024
    return f"{kib:,.0f} KiB" if kib < 5 * 1024 else f"{kib / 1024:,.1f} MiB"


def figure(value: float | None, digits: int = 4) -> str:
    """Significant digits, no exponent between 0.0001 and 999,999: 0.03 -> '0.03'."""
    if value is None:
        return NOT_MEASURED
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{max(1, digits - 2)}e}"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in text else text


def change(before: float | None, after: float | None) -> str:
    """(200, 50) -> '-75 %'; nothing where either is unknown or the first is 0."""
    if before is None or after is None or before == 0:
        return ""
    return f"{100 * (after / before - 1):+.0f} %".replace("-0 %", "0 %").replace("+0 %", "0 %")


def points(before: float | None, after: float | None) -> str:
    """(0.91, 0.9) -> '-1.00 points'."""
    if before is None or after is None:
        return ""
    return f"{100 * (after - before):+.2f} points"


def bracket(interval: tuple[float, float] | None) -> str:
    """(2.5, 2.7) -> '[2.5, 2.7]'."""
    return "" if interval is None else f"[{figure(interval[0], 3)}, {figure(interval[1], 3)}]"


def quantity(value: float | None, unit: str) -> str:
    """A gate's figure with its unit: (2.61, 'x') -> '2.61x', (0.0061, 'fraction') -> '0.61 %'."""
    if value is None:
        return NOT_MEASURED
    if unit == "fraction":
        return percent(value)
    return f"{figure(value)}{'' if unit == 'x' else ' '}{unit}".rstrip()


def span(interval: tuple[float, float] | None, unit: str) -> str:
    """An interval in the unit of its figure: (0.002, 0.01), 'fraction' -> '[0.20 %, 1.00 %]'."""
    if interval is None or unit != "fraction":
        return bracket(interval)
    return f"[{percent(interval[0])}, {percent(interval[1])}]"


def sentence_of_outcome(report: Report) -> str:
    """Which gates decided: 'The gates latency and accuracy are not met.'"""
    if not report.verdicts:
        return "No gate was judged."
    if report.outcome == "pass":
        total = len(report.verdicts)
        return "The one gate is met." if total == 1 else f"All {total} gates are met."
    gates = [row.gate for row in report.verdicts if row.outcome == report.outcome]
    names = gates[0] if len(gates) == 1 else f"{', '.join(gates[:-1])} and {gates[-1]}"
    verb = "is" if len(gates) == 1 else "are"
    noun = "gate" if len(gates) == 1 else "gates"
    ending = "not met" if report.outcome == "fail" else "undecided: the evidence is not enough"
    return f"The {noun} {names} {verb} {ending}."


def headline(report: Report) -> str:
    """What was achieved: '2.61 times faster [2.5, 2.7], -0.40 points, -62 % parameters'."""
    dense, pruned = report.dense, report.pruned
    if pruned is None:
        return "nothing is delivered"
    parts = []
    if report.speedup is not None:
        interval = bracket((report.speedup.low, report.speedup.high))
        parts.append(
            f"{figure(report.speedup.ratio, 3)} times {faster(report.speedup.ratio)} {interval}"
        )
    if dense.accuracy is not None and pruned.accuracy is not None:
        name = "accuracy" if report.metric == "accuracy" else "metric"
        parts.append(f"{name} {score_change(dense.accuracy, pruned.accuracy, report.metric)}")
    parts.append(f"parameters {change(dense.params, pruned.params)}")
    parts.append(f"multiply-accumulates {change(dense.macs, pruned.macs)}")
    return ", ".join(parts)


def faster(ratio: float) -> str:
    """How to read a ratio of latencies: 2.6 times 'faster', 0.98 times 'as fast'."""
    return "faster" if ratio >= 1 else "as fast"


def comparison(
    dense: Figures, pruned: Figures | None, metric: Metric = "accuracy"
) -> tuple[tuple[str, str, str, str], ...]:
    """Rows (what, dense, pruned, change) of the key figures; what nobody measured is left out."""
    after = pruned or Figures(params=0, macs=0)
    before_ms, after_ms = (
        None if f.latency_ms is None else f.latency_ms.p50 for f in (dense, after)
    )
    rows = [
        (
            "Accuracy (test)" if metric == "accuracy" else "Metric (test)",
            score(dense.accuracy, metric),
            score(after.accuracy, metric),
            score_change(dense.accuracy, after.accuracy, metric),
        ),
        (
            "Latency, median",
            milliseconds(before_ms),
            milliseconds(after_ms),
            change(before_ms, after_ms),
        ),
        (
            "Size of the ONNX file",
            size(dense.size_bytes),
            size(after.size_bytes),
            change(dense.size_bytes, after.size_bytes),
        ),
        (
            "Parameters",
            count(dense.params),
            count(after.params),
            change(dense.params, after.params),
        ),
        (
            "Multiply-accumulates",
            count(dense.macs),
            count(after.macs),
            change(dense.macs, after.macs),
        ),
    ]
    if pruned is None:
        rows = [(what, before, NOT_MEASURED, "") for what, before, _, _ in rows]
    return tuple(row for row in rows if row[1:3] != (NOT_MEASURED, NOT_MEASURED))


def proof_sentences(report: Report) -> tuple[str, ...]:
    """What the proofs showed, for a reader who never heard of them."""
    failed = next((v for v in report.verdicts if v.gate == "proof" and v.outcome == "fail"), None)
    if failed is not None:
        return (f"A proof failed, so nothing is delivered: {failed.why}",)
    proofs = tuple(row.proof for row in report.rounds if row.proof is not None)
    if not proofs:
        return ("Nothing was removed, so there is nothing to prove.",)
    worst = max(proofs, key=lambda proof: proof.error)
    limit = f" (at most {figure(worst.tolerance)} is accepted)" if worst.tolerance else ""
    sentences = [
        "Nothing about the removal was taken on trust. After each one, before any repair or "
        "training, the smaller model was compared with the dense model in which exactly the "
        "removed units were silenced on the way into each of their readers.",
        f"In {_rounds(len(proofs))} the largest difference was {figure(worst.error, 2)} standard "
        f"deviations of the output{limit}; that is rounding.",
        f"The removals themselves changed the output by {figure(min(p.change for p in proofs), 2)} "
        f"or more in the same unit, so the comparison had something to find.",
    ]
    controls = [proof.control for proof in proofs if proof.control is not None]
    if controls:
        sentences.append(
            f"Deliberately wrong removals raised the difference to {figure(min(controls), 2)} or "
            f"more: a mistake would have been seen."
        )
    if any(proof.weak for proof in proofs):
        sentences.append(
            "At least one proof is weak: its deliberate mistakes did not stand out clearly."
        )
    return tuple(sentences)


def _rounds(total: int) -> str:
    return "the one round" if total == 1 else f"{total} rounds"
