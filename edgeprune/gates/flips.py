"""The flips gate: on how many samples a build decides otherwise than the model it replaces.

Accuracy can stay the same while answers change; users of a shipped model see the changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgeprune.errors import DataError
from edgeprune.gates.accuracy import share_interval
from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Outcome, Verdict
from edgeprune.recipe.data import Array

_SHOWN_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipsEvidence:
    """Samples whose class changed, of how many, and the largest share allowed (0-1)."""

    gate: ClassVar[str] = "flips"

    flipped: int
    samples: int
    most: float


@gate("flips")
def judge_flips(evidence: FlipsEvidence) -> tuple[Verdict, ...]:
    """One verdict `flips` (fraction): the observed share decides."""
    share = evidence.flipped / evidence.samples
    outcome: Outcome = "pass" if share <= evidence.most else "fail"
    return (
        Verdict(
            gate="flips",
            outcome=outcome,
            observed=share,
            limit=evidence.most,
            unit="fraction",
            interval=share_interval(share, evidence.samples, _SHOWN_CONFIDENCE),
            count=evidence.samples,
            why=f"{evidence.flipped} of {evidence.samples} predictions differ from the baseline's",
        ),
    )


def count_flips(baseline: Array, candidate: Array) -> int:
    """Samples whose largest score is at another class; scores (N, C) of both models.

    Raises DataError for other shapes.
    """
    if baseline.ndim != 2 or baseline.shape != candidate.shape:
        raise DataError(
            f"counting flips at the first output: expected scores (N, C) of both models, got "
            f"{baseline.shape} and {candidate.shape}. Leave --max-flips out for other tasks.",
            where="outputs",
        )
    return int(np.sum(np.argmax(baseline, axis=1) != np.argmax(candidate, axis=1)))
