"""One model through everything that the zoo asks of it; a failed stage does not hide the next.

1. analysis explains itself, the proof holds and is not vacuous;
2. how much went, and what stayed for which reason;
3. the pruned model trains a step, is pruned again, and the composed plan is proved;
4. ONNX export, full checker, ONNX Runtime within 1e-4 where outputs vary.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree as pytree
from zoo_models import Built

from edgeprune.errors import ModelNotSupported
from edgeprune.exporting.agreement import feeds, relative_error, torch_outputs
from edgeprune.exporting.onnx import check_file, export
from edgeprune.graph.analysis import Analysis, analyze, analyze_captured
from edgeprune.graph.capture import capture
from edgeprune.graph.fold import fold
from edgeprune.graph.inputs import Inputs, clone, vary
from edgeprune.graph.module import CapturedModule
from edgeprune.planning.plan import Plan, plan
from edgeprune.scoring.scores import score
from edgeprune.surgery.compose import compose
from edgeprune.surgery.prove import Proof, prove
from edgeprune.surgery.prune import Pruned
from edgeprune.surgery.shrink import shrink
from edgeprune.surgery.user_class import to_module

KEEP = 0.5
PARITY = 1e-4
# Of one step of training, over all parameters.
_STEP_LENGTHS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
STAGES = ("analysis", "proof", "training", "second", "composed", "onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """What a proof said: `error` of the shrunk against the silenced model, in `precision`."""

    outcome: str
    error: float
    change: float
    precision: str
    why: str


@dataclass(slots=True, kw_only=True)
class Record:
    """One model's results; fields of stages that failed keep their first values.

    `removed`: share of the parameters that went, 0-1. `pins`: (unit, reason, where) of what is not
    removable. `own_class`: "" where the pruned model came back in the user's class, else why not.
    `failures`: stage -> what happened. `seconds`: by stage.
    """

    params: int = 0
    removed: float = 0.0
    nodes: int = 0
    groups: dict[str, list[int]] = field(default_factory=dict)
    pins: list[tuple[str, str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    dynamic_batch: bool = False
    proof: Proved | None = None
    second: Proved | None = None
    composed: Proved | None = None
    removed_twice: float = 0.0
    onnx_error: float | None = None
    own_class: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every stage did."""
        return not self.failures

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and note what it raises."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:  # a failure is a result here, whatever it is
            text = " ".join(str(error).split())
            self.failures[name] = f"{type(error).__name__}: {text[:1500]}"
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Time a part of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def trial(built: Built) -> Record:
    """Everything, on one model. The model is not changed."""
    record = Record(params=_count(built.model))
    first: Pruned | None = None
    with record.stage("analysis"):
        analysis = _analyze(record, built)
        first = _prune(record, analysis)
    if first is None:
        return record
    with record.stage("proof"):
        proof = prove(first.analysis, first.plan, first.model)
        record.proof = _require(proof)
        first = Pruned(model=first.model, plan=first.plan, analysis=first.analysis, proof=proof)
    trained = copy.deepcopy(first.model)
    with record.stage("training"):
        train_step(trained, first.analysis)
    with record.stage("second"):
        analysis = analyze(trained, first.analysis.captured.args, first.analysis.captured.kwargs)
        later = plan(analysis, score(analysis), keep_fraction=KEEP)
        smaller = shrink(analysis, later)
        record.removed_twice = 1.0 - _count(smaller) / record.params
        record.second = _require(prove(analysis, later, smaller), nothing=not later.axes)
        with record.stage("composed"):
            record.composed = _compose(first, later, smaller)
    with record.stage("onnx"):
        record.onnx_error = parity(first)
    with record.clock("own class"):
        record.own_class = own_class(first, built.model)
    return record


def _analyze(record: Record, built: Built) -> Analysis:
    """`edgeprune.analyze`, its parts timed apart."""
    with record.clock("capture"):
        captured = fold(capture(built.model, built.args, built.kwargs))
    record.nodes = len(captured.module.graph.nodes)
    with record.clock("walk"):
        analysis = analyze_captured(captured)
    kinds: dict[str, Counter[int]] = {}
    for group in analysis.groups:
        kinds.setdefault(group.kind, Counter())[group.width] += 1
    record.groups = {kind: sorted(widths.elements()) for kind, widths in kinds.items()}
    record.pins = [(pin.unit, pin.reason, pin.where) for pin in analysis.pins]
    record.unknown, record.lost = list(analysis.unknown), list(captured.lost)
    record.dynamic_batch = captured.dynamic_batch
    return analysis


def _prune(record: Record, analysis: Analysis) -> Pruned:
    with record.clock("plan"):
        decided = plan(analysis, score(analysis), keep_fraction=KEEP)
    if not decided.axes:
        raise RuntimeError("nothing can be removed")
    with record.clock("shrink"):
        small = shrink(analysis, decided)
    record.removed = 1.0 - _count(small) / record.params
    nothing = Proof(
        outcome="nothing removed",
        error=0.0,
        change=0.0,
        precision="float32",
        tolerance=0.0,
        sabotages=(),
        why="not proved yet",
    )
    return Pruned(model=small, plan=decided, analysis=analysis, proof=nothing)


def _require(proof: Proof, *, nothing: bool = False) -> Proved:
    """What it said, if it holds and is not vacuous (or nothing was to go)."""
    said = Proved(
        outcome=proof.outcome,
        error=proof.error,
        change=proof.change,
        precision=proof.precision,
        why=proof.why,
    )
    if proof.outcome != "proved" and not (nothing and proof.outcome == "nothing removed"):
        raise RuntimeError(f"{said.outcome} at {proof.where}: {said.why}, error {said.error:.3g}")
    return said


def _compose(first: Pruned, later: Plan, smaller: nn.Module) -> Proved:
    """Both removals in one plan of the dense model, carried out and proved."""
    combined = compose(first.analysis, first.plan, later)
    replayed = shrink(first.analysis, combined)
    for (name, mine), (other, yours) in zip(
        replayed.state_dict().items(), smaller.state_dict().items(), strict=True
    ):
        if name != other or mine.shape != yours.shape:
            raise RuntimeError(f"{name} {tuple(mine.shape)} is not {other} {tuple(yours.shape)}")
    return _require(prove(first.analysis, combined, replayed), nothing=not combined.axes)


def train_step(model: CapturedModule, analysis: Analysis) -> None:
    """A step along the gradient in training mode lowers the loss (in place; back in eval mode).

    Dropout drops the same numbers before and after. BatchNorm of two samples at one position is
    steep (gradients of 10,000, in eager too), so a step that is too long is tried at a tenth.
    """
    inputs = vary(analysis.captured.inputs, seed=5)
    model.train()
    before = _loss(model, inputs)
    before.backward()
    slopes = [(p, p.grad) for p in model.parameters() if p.grad is not None and bool(p.grad.any())]
    if not slopes or not all(bool(slope.isfinite().all()) for _, slope in slopes):
        raise RuntimeError("no gradient, or one that is not finite")
    norm = torch.nn.utils.get_total_norm([slope for _, slope in slopes])
    at = 0.0
    for length in _STEP_LENGTHS:
        with torch.no_grad():
            for parameter, slope in slopes:
                parameter.sub_(slope * ((length - at) / norm))
            after = _loss(model, inputs)
        at = length
        if after < before:
            break
    else:
        raise RuntimeError(f"the loss was {before.item()} and no step along its gradient lowers it")
    model.zero_grad()
    model.eval()


def _loss(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    copies = clone(inputs)
    torch.manual_seed(0)
    outputs = pytree.tree_leaves(model(*copies.args, **copies.kwargs))
    floats = [o for o in outputs if isinstance(o, torch.Tensor) and o.is_floating_point()]
    return torch.stack([o.square().mean() for o in floats]).sum()


def own_class(pruned: Pruned, model: nn.Module) -> str:
    """ "" if the user's own class can hold the pruned model, else the reason."""
    try:
        to_module(pruned, model)
    except ModelNotSupported as error:
        return str(error)
    except Exception as error:  # no refusal, a fault: to be told apart in the table
        return f"FAULT {type(error).__name__}: {error}"
    return ""


def parity(pruned: Pruned) -> float:
    """Largest |torch - ONNX Runtime| / standard deviation of an output, on varied inputs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(pruned, path)
        session = check_file(path)
        inputs = vary(pruned.analysis.captured.inputs, seed=9)
        expected = torch_outputs(pruned.model, inputs)
        got = session.run(None, feeds(session, inputs))
    error = max(relative_error(a, b) for a, b in zip(expected, got, strict=True))
    if not any(a.std() > 0 for a in expected):
        raise RuntimeError("every output is constant")
    if not error <= PARITY:
        raise RuntimeError(f"ONNX Runtime differs by {error:.3g}")
    return error


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
