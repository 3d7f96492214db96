"""Prove: the shrunk model computes what the dense one computes with the removed units silenced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.errors import InternalError, ModelNotSupported, ProofFailed, require_a
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.inputs import Inputs, clone, resize_batch, vary
from edgeprune.graph.module import CapturedModule
from edgeprune.graph.precision import forget, in_float64, inputs_in_float64
from edgeprune.planning.plan import Plan
from edgeprune.recipe.trial import same_buffers
from edgeprune.surgery.deviation import deviation, first_difference, single_numbers_differ, varies
from edgeprune.surgery.sabotage import Sabotage, sabotage
from edgeprune.surgery.shrink import passes
from edgeprune.surgery.silence import Silencer
from edgeprune.surgery.survivors import removed_units, whole_units

Outcome = Literal["proved", "weak", "failed", "nothing removed", "no change"]

TOLERANCE_FLOAT32 = 1e-4
TOLERANCE_FLOAT64 = 1e-8
# What float64 really reaches on a healthy graph; sabotage is first judged on this scale.
TOLERANCE_FINE = 1e-11
# A sabotaged reference must miss by at least this many tolerances.
MARGIN = 100.0
# An output of fewer numbers over all samples has no spread worth dividing by.
_LEAST_NUMBERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What comparing the shrunk with the silenced dense model gave.

    `error`: max |a - b| / standard deviation of the output, worst output, in `precision`;
    `change`: the same distance between the silenced and the dense output, the change that the
    removal makes; `sabotages`: what deliberately wrong references gave (the proof is weak when
    one of them passes). `where` names node and line of the first difference of a failed proof.
    """

    outcome: Outcome
    error: float
    change: float
    precision: Literal["float32", "float64"]
    tolerance: float
    sabotages: tuple[Sabotage, ...]
    why: str
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether the models agree within tolerance."""
        return self.outcome in ("proved", "weak")

    def require(self) -> Proof:
        """This proof if it holds; else `ProofFailed`."""
        if self.outcome == "failed":
            raise ProofFailed(
                f"proof at {self.where}: expected the shrunk model within {self.tolerance:g} of "
                f"the silenced one in {self.precision}, got {self.error:.3g}. This is a bug of "
                "edgeprune; report the model. Nothing was delivered.",
                where=self.where,
            )
        return self


def prove(analysis: Analysis, plan: Plan, pruned: torch.nn.Module, *, seed: int = 0) -> Proof:
    """Compare `pruned` with the analysed model silenced by `plan`, and try to fool the comparison.

    Error per output = max |a - b| / std(b), on structured inputs whose outputs vary; at most 1e-4
    in float32, else decided in float64 by 1e-8.
    A plan that removes parts of dense units (of one head that is left) is proved pass by pass, each
    against the model that the one before leaves; the last one is `pruned`.
    Raises `ModelNotSupported` when the dense output is constant or not finite: then no comparison
    says anything.
    """
    require_a(Plan, plan, "prove at plan", "Write prove(analysis, plan, shrink(analysis, plan)).")
    require_a(torch.nn.Module, pruned, "prove at pruned", "Give what shrink returned.")
    if whole_units(analysis, plan).problem is None:
        return _prove(analysis, plan, pruned, seed)
    steps = passes(analysis, plan)
    modules = [*(step.module for step in steps[:-1]), pruned]
    return _chained(
        [
            _prove(step.analysis, step.plan, module, seed)
            for step, module in zip(steps, modules, strict=True)
        ]
    )


def _chained(links: list[Proof]) -> Proof:
    """One proof of several passes: the worst of them, with the sabotages of all.

    A pass that took dead units only is exact and says nothing: the others decide, if there are any.
    """
    links = [link for link in links if link.outcome != "no change"] or links
    order = ("failed", "no change", "weak", "proved", "nothing removed")
    worst = min(links, key=lambda link: (order.index(link.outcome), -link.error / link.tolerance))
    tries = tuple(one for link in links for one in link.sabotages)
    return replace(
        worst,
        change=max(link.change for link in links),
        sabotages=tries,
        why=f"{worst.why} (in {len(links)} passes)",
    )


def _prove(analysis: Analysis, plan: Plan, pruned: torch.nn.Module, seed: int) -> Proof:
    removed = removed_units(analysis, plan)
    kept = analysis.kept_labels(removed)
    inputs, dense = _telling_inputs(analysis, seed)
    if kept.all():
        return _proof("nothing removed", 0.0, 0.0, "float32", (), "the plan removes nothing")
    with contextlib.ExitStack() as held:
        return _judged(_Trial(analysis, pruned, inputs), plan, removed, dense, seed, held)


def _judged(
    trial: _Trial,
    plan: Plan,
    removed: Mapping[str, NDArray[np.bool_]],
    dense: tuple[object, ...],
    seed: int,
    held: contextlib.ExitStack,
) -> Proof:
    """Compare, in float64 if need be, and sabotage; `held` lets go of what that takes."""
    kept = trial.analysis.kept_labels(removed)
    reference = trial.silenced(kept)
    change = deviation(reference, dense)
    error = max(deviation(trial.shrunk(), reference), _other_batch(trial, kept))
    precision: Literal["float32", "float64"] = "float32"
    tolerance = TOLERANCE_FLOAT32
    if not error <= tolerance:
        trial = held.enter_context(trial.precise())
        reference = trial.silenced(kept)
        error = max(deviation(trial.shrunk(), reference), _other_batch(trial, kept))
        precision, tolerance = "float64", TOLERANCE_FLOAT64
    if not error <= tolerance:
        with trial.created_alike():
            where = first_difference(trial.analysis, kept, trial.dense, trial.pruned, trial.inputs)
        return _proof("failed", error, change, precision, (), "outputs differ", where)
    if change == 0.0:
        return _proof("no change", error, change, precision, (), "the removed units were dead")
    tries, faint = _sabotages(trial, plan, removed, kept, seed, held)
    beside = f"; heard too faintly to tell: {', '.join(faint)}" if faint else ""
    if not tries:
        return _proof("weak", error, change, precision, tries, f"no group tried is heard{beside}")
    missed = ", ".join(f"{t.kind} in {t.group}" for t in tries if not t.detected)
    if missed:
        return _proof("weak", error, change, precision, tries, f"not told apart: {missed}{beside}")
    why = f"every one of {len(tries)} sabotaged comparisons was told apart{beside}"
    return _proof("proved", error, change, precision, tries, why)


def _other_batch(trial: _Trial, kept: NDArray[np.bool_]) -> float:
    """Error at one sample more: a size that surgery baked in shows here."""
    captured = trial.analysis.captured
    batch = captured.inputs.batch_size
    if not captured.dynamic_batch or batch is None:
        return 0.0
    other = replace(trial, inputs=resize_batch(trial.inputs, batch + 1))
    return deviation(other.shrunk(), other.silenced(kept))


def _sabotages(
    trial: _Trial,
    plan: Plan,
    removed: Mapping[str, NDArray[np.bool_]],
    kept: NDArray[np.bool_],
    seed: int,
    held: contextlib.ExitStack,
) -> tuple[tuple[Sabotage, ...], tuple[str, ...]]:
    """In float64: one unit of thousands moves an output by less than 100 float32 tolerances.

    On the finest scale on which the honest comparison holds, so that the margin is of the
    tolerance that was really met (docs/decisions/0004).
    """
    fine = trial if trial.dense_module is not None else held.enter_context(trial.precise())
    reference = fine.silenced(kept)
    if trial.analysis.captured.dynamic_batch and fine.inputs.batch_size is not None:
        # One sample tells a wrong unit as well as two, in half the time, where its outputs are
        # many numbers: those of a few have no spread to measure an error by.
        fewest = _samples_for(reference, fine.inputs.batch_size)
        fine = replace(fine, inputs=resize_batch(fine.inputs, fewest))
        reference = fine.silenced(kept)
    error = deviation(fine.shrunk(), reference)
    for tolerance in (TOLERANCE_FINE, TOLERANCE_FLOAT64):
        if error <= tolerance:
            return sabotage(fine, plan, removed, reference, tolerance * MARGIN, seed)
    # The model casts to float32 somewhere inside: the float32 scale it is.
    reference = trial.silenced(kept)
    return sabotage(trial, plan, removed, reference, TOLERANCE_FLOAT32 * MARGIN, seed)


def _proof(
    outcome: Outcome,
    error: float,
    change: float,
    precision: Literal["float32", "float64"],
    tries: tuple[Sabotage, ...],
    why: str,
    where: str = "",
) -> Proof:
    tolerance = TOLERANCE_FLOAT32 if precision == "float32" else TOLERANCE_FLOAT64
    return Proof(
        outcome=outcome,
        error=error,
        change=change,
        precision=precision,
        tolerance=tolerance,
        sabotages=tries,
        why=why,
        where=where,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """The two models and the inputs of one comparison."""

    analysis: Analysis
    pruned: torch.nn.Module
    inputs: Inputs
    dense_module: CapturedModule | None = None

    @property
    def dense(self) -> CapturedModule:
        """The unedited captured graph."""
        return self.dense_module or self.analysis.captured.module

    def silenced(self, kept: NDArray[np.bool_]) -> tuple[object, ...]:
        """Flat outputs of the dense graph with everything not kept silenced."""
        with self.created_alike():
            return _heard(self.analysis, self.dense, kept, self.inputs)

    def shrunk(self) -> tuple[object, ...]:
        """Flat outputs of the shrunk model."""
        return self.run(self.pruned)

    def run(self, model: torch.nn.Module) -> tuple[object, ...]:
        """Flat outputs of any model that takes the same inputs; none where it cannot run."""
        copies = clone(self.inputs)
        try:
            with torch.no_grad(), self.created_alike(), same_buffers(model):
                result = model(*copies.args, **copies.kwargs)
        except (RuntimeError, IndexError, ValueError):
            # A baked size: deviation() takes missing outputs for an infinite error.
            return ()
        return tuple(torch.utils._pytree.tree_leaves(result))

    @contextlib.contextmanager
    def created_alike(self) -> Iterator[None]:
        """Tensors that the graph creates without a dtype get this trial's precision."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32 if self.dense_module is None else torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    @contextlib.contextmanager
    def precise(self) -> Iterator[_Trial]:
        """The same comparison in float64, while it lasts."""
        pruned, dense = in_float64(self.pruned), in_float64(self.analysis.captured.module)
        try:
            yield _Trial(self.analysis, pruned, inputs_in_float64(self.inputs), dense)
        finally:
            forget(pruned)
            forget(dense)


def _samples_for(outputs: tuple[object, ...], batch: int) -> int:
    """Samples that give every floating output enough numbers for its spread to mean something."""
    counts = [
        output.numel() // batch
        for output in outputs
        if isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim() > 0
    ]
    return max((-(-_LEAST_NUMBERS // max(count, 1)) for count in counts), default=1)


def _heard(
    analysis: Analysis, module: CapturedModule, kept: NDArray[np.bool_], inputs: Inputs
) -> tuple[object, ...]:
    """Flat outputs of the dense graph of which only `kept` is heard."""
    try:
        return Silencer(analysis, module, kept).outputs(clone(inputs))
    except (RuntimeError, IndexError, ValueError) as error:
        if not kept.all():
            # Unless the model refuses these inputs by itself, the silencing is at fault.
            _heard(analysis, module, np.ones_like(kept), inputs)
            raise InternalError(
                f"proof at the silenced model: expected it to run where the dense one does, got "
                f"{' '.join(str(error).split())[:300]}. Report the model."
            ) from error
        samples = "" if inputs.batch_size is None else f", {inputs.batch_size} samples"
        raise ModelNotSupported(
            f"proof at the model: expected it to take other values than the example's{samples}, "
            f"got {' '.join(str(error).split())[:300]}. It needs inputs of a kind that cannot be "
            "made from the example (a token that every sample has once, say)."
        ) from error


def _telling_inputs(analysis: Analysis, seed: int) -> tuple[Inputs, tuple[object, ...]]:
    """Structured inputs whose dense outputs are finite and vary, and those outputs.

    Outputs of one number each (a loss) have no spread: they vary from input to input.
    """
    everything = np.ones(analysis.walk.labels.next_label, dtype=bool)
    captured = analysis.captured
    example = captured.inputs
    before: tuple[object, ...] = ()
    for attempt in range(3):
        inputs = vary(example, seed + attempt)
        dense = _heard(analysis, captured.module, everything, inputs)
        batch = inputs.batch_size
        if captured.dynamic_batch and batch is not None and batch < _samples_for(dense, batch):
            inputs = vary(resize_batch(example, _samples_for(dense, batch)), seed + attempt)
            dense = _heard(analysis, captured.module, everything, inputs)
        if varies(dense) or single_numbers_differ(dense, before):
            return inputs, dense
        before = dense
    raise ModelNotSupported(_nothing_told(dense))


def _nothing_told(outputs: tuple[object, ...]) -> str:
    floats = [o for o in outputs if isinstance(o, torch.Tensor) and o.is_floating_point()]
    start = "proof at the model's output: expected finite values that vary, got"
    if not floats:
        return f"{start} no floating-point output. Return the scores that they are chosen by too."
    if all(bool(o.isfinite().all()) for o in floats):
        return (
            f"{start} constant ones on three structured inputs. A constant output proves nothing: "
            "load trained weights, or give the head non-zero ones."
        )
    return (
        f"{start} infinite ones or NaN on three structured inputs. These are drawn around the "
        "example's values: give an example that is finite and shows their range (a mask of floats "
        "with zeros and ones), and trained weights."
    )
