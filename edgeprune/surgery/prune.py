"""Prune: analyze, score, plan, shrink and prove in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from edgeprune.errors import NothingToRemove, PlanError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.graph.module import CapturedModule
from edgeprune.planning.allocate import Request
from edgeprune.planning.plan import Plan, plan_for
from edgeprune.planning.selection import Selection
from edgeprune.recipe.data import Batch, Loss
from edgeprune.scoring.scores import score
from edgeprune.surgery.prove import Proof, prove
from edgeprune.surgery.repair_report import Repair
from edgeprune.surgery.shrink import shrink


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruned:
    """A shrunk model with the evidence: what was removed, from what, and the proof.

    `model` is callable like the original, trains, deep-copies, moves with `.to()`, keeps the
    original's parameter names, and can be pruned again; `to_module` gives it back in the
    original's own class, where that can take the sizes. `repaired` is what `repair` did, None
    before it.
    """

    model: CapturedModule
    plan: Plan
    analysis: Analysis
    proof: Proof
    repaired: Repair | None = None


def prune(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None = None,
    *,
    keep_fraction: float = 0.5,
    criterion: str = "l2",
    allocation: str = "uniform",
    multiple: int = 1,
    keep: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    fractions: Mapping[str, float] | None = None,
    min_width: int | Mapping[str, int] = 1,
    dynamic_batch: bool = True,
    exact_only: bool = False,
    batches: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> Pruned:
    """Prune `model` (never changed) once and prove the result.

    `batches`, pairs (inputs, target), and `loss` are for criteria of gradients (`taylor`).
    See `analyze`, `score`, `plan`, `shrink` and `prove` for the arguments.
    Raises `ProofFailed` when the shrunk model is not the silenced dense one, `PlanError` when
    nothing could be removed although something was to go, and what the stages raise.
    """
    selection = Selection(keep=keep, only=only, fractions=fractions or {}, min_width=min_width)
    request = Request(keep_fraction, allocation, multiple, selection=selection)
    analysis = analyze(model, args, kwargs, dynamic_batch=dynamic_batch, exact_only=exact_only)
    scores = score(analysis, criterion, batches, loss, seed=seed)
    decided = plan_for(analysis, scores, request)
    if request.removes and not decided.axes:
        raise _nothing(analysis, request)
    small = shrink(analysis, decided)
    proof = prove(analysis, decided, small, seed=seed).require()
    return Pruned(model=small, plan=decided, analysis=analysis, proof=proof)


def _nothing(analysis: Analysis, request: Request) -> PlanError:
    reasons = list(dict.fromkeys(f"{pin.unit}: {pin.reason} {pin.where}" for pin in analysis.pins))
    shown = "; ".join(reasons[:5]) or "the model has no removable width"
    text = f"prune: expected at least one unit to remove, got none. Pins: {shown}."
    if not analysis.groups:
        return NothingToRemove(f"{text} See `edgeprune inspect`.")
    options = ("keep_fraction", "multiple", *request.selection.in_force)
    return PlanError(
        f"{text} {len(analysis.groups)} groups are free: remove more by {' or '.join(options)}."
    )
