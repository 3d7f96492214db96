"""The operators gate: every operator of a build is one that the target's runtime has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorsEvidence:
    """Operators by name with how often they occur, the operator set, and what the target takes.

    `allowed` None: every operator of ONNX itself; those of other domains must be allowed by name.
    """

    gate: ClassVar[str] = "operators"

    found: tuple[tuple[str, int], ...]
    opset: int
    target: str
    allowed: tuple[str, ...] | None = None
    denied: tuple[str, ...] = ()
    max_opset: int | None = None


@gate("operators")
def judge_operators(evidence: OperatorsEvidence) -> tuple[Verdict, ...]:
    """One verdict `operators`: how many nodes the target cannot run, each operator named."""
    refused = [(name, count) for name, count in evidence.found if not _taken(name, evidence)]
    problems = [f"{name} ({count})" for name, count in refused]
    why = f"target '{evidence.target}' does not take {', '.join(problems)}" if problems else ""
    too_new = evidence.max_opset is not None and evidence.opset > evidence.max_opset
    if too_new:
        newer = f"operator set {evidence.opset}, the target reads up to {evidence.max_opset}"
        why = f"{why}; {newer}" if why else newer
    total = sum(count for _, count in evidence.found)
    said = f"{total} nodes of {len(evidence.found)} operators, operator set {evidence.opset}"
    return (
        Verdict(
            gate="operators",
            outcome="fail" if refused or too_new else "pass",
            observed=float(sum(count for _, count in refused)),
            limit=0.0,
            unit="nodes",
            interval=None,
            count=total,
            why=why or said,
        ),
    )


def _taken(name: str, evidence: OperatorsEvidence) -> bool:
    if name in evidence.denied:
        return False
    if evidence.allowed is not None:
        return name in evidence.allowed
    return "." not in name
