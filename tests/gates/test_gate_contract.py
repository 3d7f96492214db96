"""What every gate keeps to, ours and plugins' alike; and what the room may import."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import edgeprune.gates
from edgeprune.errors import UsageError
from edgeprune.gates import (
    AccuracyEvidence,
    LatencyEvidence,
    ParityEvidence,
    SizeEvidence,
    Verdict,
    gate_names,
    judge,
)
from edgeprune.gates.accuracy_min import FloorEvidence
from edgeprune.gates.accuracy_ratio import RatioEvidence
from edgeprune.gates.contract import ContractEvidence, Interface, Port
from edgeprune.gates.flips import FlipsEvidence
from edgeprune.gates.judging import Evidence
from edgeprune.gates.operators import OperatorsEvidence
from edgeprune.gates.parity import OutputParity
from edgeprune.gates.process import ProcessEvidence

NAMES = "accuracy accuracy_min accuracy_ratio contract flips latency operators parity process size"
ROOT = Path(__file__).resolve().parents[2]


def evidence_for(name: str, make_pairs) -> tuple[Evidence, ...]:
    """Evidence that should pass, fail and be inconclusive; a new gate adds its own here."""
    pairs = make_pairs([8.0, 8.1, 8.0], [4.0, 4.1, 4.0])
    compared = OutputParity(name="y", finding="compared", error=1e-6)
    loads = tuple(replace(s, load_ms=5.0 + 0.1 * i) for i, s in enumerate(pairs.candidate))
    vacuous = OutputParity(name="y", finding="vacuous", error=None, problem="is constant")
    return {
        "latency": (
            LatencyEvidence(paired=pairs, limit_ms=5.0),
            LatencyEvidence(paired=pairs, limit_ms=3.0),
            LatencyEvidence(paired=pairs, limit_ms=4.03),
        ),
        "accuracy": (
            AccuracyEvidence(dense=0.9, pruned=0.9, largest_drop=0.01),
            AccuracyEvidence(dense=0.9, pruned=0.8, largest_drop=0.01),
            AccuracyEvidence(dense=None, pruned=None, largest_drop=0.01),
        ),
        "size": (
            SizeEvidence(pruned_bytes=10, limit_mib=1.0),
            SizeEvidence(pruned_bytes=2**21, limit_mib=1.0),
            SizeEvidence(pruned_bytes=10, largest_ratio=0.5),
        ),
        "parity": (
            ParityEvidence(outputs=(compared,), samples=2),
            ParityEvidence(outputs=(compared,), samples=2, limit=1e-9),
            ParityEvidence(outputs=(vacuous,), samples=2),
        ),
        "accuracy_min": (
            FloorEvidence(right=9, samples=10, least=0.9),
            FloorEvidence(right=8, samples=10, least=0.9),
            FloorEvidence(right=None, samples=10, least=0.9),
        ),
        "accuracy_ratio": (
            RatioEvidence(dense=0.9, pruned=0.81, least=0.9, samples=10),
            RatioEvidence(dense=0.9, pruned=0.8, least=0.9, samples=10),
            RatioEvidence(dense=0.0, pruned=0.8, least=0.9, samples=10),
        ),
        "process": tuple(
            ProcessEvidence(processes=started, confidence=0.95, load_ms=limit)
            for started, limit in ((loads, 6.0), (loads, 2.0), (loads[:1], 6.0))
        ),
        "flips": (
            FlipsEvidence(flipped=1, samples=10, most=0.1),
            FlipsEvidence(flipped=2, samples=10, most=0.1),
        ),
        "contract": (
            ContractEvidence(baseline=PORTS, candidate=PORTS),
            ContractEvidence(baseline=PORTS, candidate=Interface(inputs=(), outputs=())),
        ),
        "operators": (
            OperatorsEvidence(found=(("Conv", 2),), opset=20, target="t"),
            OperatorsEvidence(found=(("Conv", 2),), opset=20, target="t", denied=("Conv",)),
        ),
    }[name]


PORT = Port(name="x", dtype="float", shape=(None, 3))
PORTS = Interface(inputs=(PORT,), outputs=())
# What is read off the files is always there: these never lack evidence.
ALWAYS_DECIDED = ("contract", "flips", "operators")


@pytest.mark.parametrize("name", gate_names())
def test_every_gate_passes_fails_and_abstains(name: str, make_pairs) -> None:
    """A gate answers every outcome it can have, each with a reason and a line to print."""
    outcomes = []
    for evidence in evidence_for(name, make_pairs):
        for verdict in judge(evidence):
            assert isinstance(verdict, Verdict)
            assert verdict.gate.startswith((name, "speedup"))
            assert verdict.why
            assert verdict.line().startswith(f"{verdict.gate} {verdict.outcome.upper()}: ")
            assert "\n" not in verdict.line()
            outcomes.append(verdict.outcome)

    assert outcomes == ["pass", "fail", "inconclusive"][: 2 if name in ALWAYS_DECIDED else 3]


@pytest.mark.parametrize("name", gate_names())
def test_evidence_is_frozen_and_names_its_gate(name: str, make_pairs) -> None:
    """Evidence cannot be changed after it was gathered, and says which gate judges it."""
    for evidence in evidence_for(name, make_pairs):
        field = dataclasses.fields(evidence)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(evidence, field, None)
        assert evidence.gate == name


def test_verdicts_come_in_the_order_of_the_evidence(make_pairs) -> None:
    """Judging several pieces at once is judging them one by one."""
    size = SizeEvidence(pruned_bytes=10, limit_mib=1.0)
    speed = LatencyEvidence(paired=make_pairs([8.0] * 3, [4.0] * 3), least_speedup=1.5)

    assert judge(speed, size) == judge(speed) + judge(size)


def test_evidence_of_an_unknown_gate_is_refused() -> None:
    """A gate that is not there is named, with those that are."""

    class Energy:
        gate = "energy"

    with pytest.raises(
        UsageError, match="at 'energy': expected one of accuracy, accuracy_min, accuracy_ratio"
    ):
        judge(Energy())


def test_public_names_are_exactly_what_is_importable() -> None:
    """Every name in __all__ loads, and __all__ names everything that is looked up lazily."""
    module = importlib.import_module("edgeprune.gates")

    assert sorted(module._HOME_OF) == module.__all__
    for name in module.__all__:
        assert getattr(edgeprune.gates, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_gates_judge_with_torch_blocked() -> None:
    """Every module imports, and a verdict is given, where torch does not exist."""
    program = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnxscript"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, NoTorch())
import edgeprune.gates
print([m for m in ("numpy", "scipy", "onnx", "onnxruntime", "pydantic") if m in sys.modules])
print(*edgeprune.gates.gate_names())
for name in edgeprune.gates.__all__:
    getattr(edgeprune.gates, name)
evidence = edgeprune.gates.SizeEvidence(pruned_bytes=1, limit_mib=1.0)
print(edgeprune.gates.judge(evidence)[0].outcome)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.stdout.splitlines() == ["[]", NAMES, "pass"], done.stderr
