"""The seam of the gates: evidence names its gate, the gate turns it into verdicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeAlias

from edgeprune.gates.verdict import Verdict
from edgeprune.measure.registry import Registry


class Evidence(Protocol):
    """A frozen dataclass of facts and limits; `gate` is the name of the gate that judges it."""

    gate: ClassVar[str]


Gate: TypeAlias = Callable[..., tuple[Verdict, ...]]

_GATES: Registry[Gate] = Registry(kind="gate", package="edgeprune.gates")

gate = _GATES.register
gate_names = _GATES.names


def judge(*evidence: Evidence) -> tuple[Verdict, ...]:
    """The verdicts on every piece of evidence, in order; one piece may yield several."""
    return tuple(verdict for piece in evidence for verdict in _GATES.find(piece.gate)(piece))
