"""The accuracy_ratio gate: how much of the baseline's accuracy a build must keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Outcome, Verdict

_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioEvidence:
    """The same metric of both models on the same samples (None: no labels), and the least ratio.

    least: pruned / dense, above 0, at most 1.
    """

    gate: ClassVar[str] = "accuracy_ratio"

    dense: float | None
    pruned: float | None
    least: float
    samples: int | None


@gate("accuracy_ratio")
def judge_ratio(evidence: RatioEvidence) -> tuple[Verdict, ...]:
    """One verdict `accuracy_ratio` (x): the observed ratio decides."""
    dense, pruned = evidence.dense, evidence.pruned
    observed: float | None = None
    outcome: Outcome = "inconclusive"
    if dense is None or pruned is None:
        why = "the data has no labels, so accuracy is unknown. Add one label a sample"
    elif dense <= 0:
        why = f"the baseline's metric is {dense:.4g}, and a share of that says nothing"
    else:
        observed = pruned / dense
        outcome = "pass" if observed >= evidence.least - _ROUNDING else "fail"
        why = (
            f"{pruned:.4g} of the baseline's {dense:.4g}, at least {evidence.least:g} of it asked; "
            f"the observed ratio is judged"
        )
    return (
        Verdict(
            gate="accuracy_ratio",
            outcome=outcome,
            observed=observed,
            limit=evidence.least,
            unit="x",
            interval=None,
            count=evidence.samples,
            why=why,
        ),
    )
