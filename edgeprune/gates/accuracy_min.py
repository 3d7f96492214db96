"""The accuracy_min gate: a least accuracy, for a build that has no baseline beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeprune.gates.accuracy import share_interval
from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Outcome, Verdict

_SHOWN_CONFIDENCE = 0.95
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorEvidence:
    """Right answers among samples (None: no labels), and the least share of them, 0-1."""

    gate: ClassVar[str] = "accuracy_min"

    right: int | None
    samples: int
    least: float


@gate("accuracy_min")
def judge_floor(evidence: FloorEvidence) -> tuple[Verdict, ...]:
    """One verdict `accuracy_min` (fraction): the observed share decides, with Wilson's interval."""
    observed = interval = None
    outcome: Outcome = "inconclusive"
    why = "the data has no 'target', so accuracy is unknown. Add one label a sample"
    if evidence.right is not None:
        observed = evidence.right / evidence.samples
        interval = share_interval(observed, evidence.samples, _SHOWN_CONFIDENCE)
        outcome = "pass" if observed >= evidence.least - _ROUNDING else "fail"
        why = (
            f"{evidence.right} of {evidence.samples} right, at least {evidence.least:g} asked; "
            f"{_SHOWN_CONFIDENCE:.0%} interval, the observed share is judged"
        )
    return (
        Verdict(
            gate="accuracy_min",
            outcome=outcome,
            observed=observed,
            limit=evidence.least,
            unit="fraction",
            interval=interval,
            count=evidence.samples,
            why=why,
        ),
    )
