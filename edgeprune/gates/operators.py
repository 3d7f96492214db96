"""The operators gate: every operator of a build is one that the target's runtime has."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from typing import ClassVar

import onnx.defs

from edgeprune.errors import UsageError
from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Verdict

_ONNX = "ai.onnx"


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

    def __post_init__(self) -> None:
        """Refuse a name that no operator has: UsageError, which would allow or deny nothing."""
        for key, names in (("allowed", self.allowed or ()), ("denied", self.denied)):
            for name in names:
                _require_known(name, f"operators.{key}", self.target)


def _require_known(name: str, key: str, target: str) -> None:
    """Names of ONNX itself are known, old ones too; those of other domains are taken as they are.

    ONNX's own domain is not written: `Conv`, not `ai.onnx.Conv`.
    """
    domain, _, bare = name.rpartition(".")
    known = _names_of_onnx()
    if name in known or domain not in ("", _ONNX):
        return
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(bare.lower(), by_lower, n=1, cutoff=0.5)
    advice = f"Did you mean '{by_lower[near[0]]}'?" if near else "Write its domain before its name."
    raise UsageError(
        f"reading the target '{target}' at {key}: expected names of ONNX operators, got "
        f"'{name}'. {advice}",
        where=key,
    )


@functools.cache
def _names_of_onnx() -> frozenset[str]:
    schemas = onnx.defs.get_all_schemas_with_history()
    return frozenset(schema.name for schema in schemas if schema.domain in ("", _ONNX))


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
