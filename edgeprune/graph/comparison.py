"""The captured graph against eager: on two inputs, at another batch size than it was traced with.

Captured once, compared always: export bakes in what it takes for constant, and says nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from edgeprune.errors import DrawsNumbers, ModelNotSupported
from edgeprune.graph.inputs import (
    Inputs,
    clone,
    grow_batch,
    is_batched,
    resize_batch,
    vary,
    vary_but_first,
)
from edgeprune.graph.module import CapturedModule
from edgeprune.graph.observe import Facts, observe
from edgeprune.graph.outputs import know_dataclasses
from edgeprune.graph.precision import in_float64, inputs_in_float64, is_low
from edgeprune.recipe.trial import same_buffers

# Capture runs the same kernels as eager; a larger difference means a baked value.
_TOLERANCE = 1e-4


def takes_another_batch(model: nn.Module, given: Inputs) -> bool:
    """Whether the model runs with one sample more than the example has."""
    size = given.batch_size
    return size is not None and takes(model, resize_batch(given, size + 1))


def takes(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the model runs on the inputs."""
    trial = clone(inputs)
    try:
        with same_buffers(model):
            model(*trial.args, **trial.kwargs)
    except Exception:  # whatever the user's code raises there, it says no
        return False
    return True


def treats_samples_alike(module: nn.Module, given: Inputs) -> bool:
    """Whether one more sample leaves what the graph gives for the others as it was.

    A graph may run on another batch and still have one baked into a `view` or an `expand`, or read
    the first sample alone: one more has to be seen in the outputs.
    """
    size = given.batch_size
    if size is None or not takes_another_batch(module, given):
        return False
    few, many = clone(given), clone(resize_batch(given, size + 1))
    with same_buffers(module):
        ours = pytree.tree_leaves(module(*few.args, **few.kwargs))
    with same_buffers(module):
        theirs = pytree.tree_leaves(module(*many.args, **many.kwargs))
    tensors = [
        (one, other)
        for one, other in zip(ours, theirs, strict=True)
        if is_batched(one, size) and isinstance(other, torch.Tensor)
    ]
    if not tensors:
        return any(map(_differ, ours, theirs))
    return all(
        other.shape == (size + 1, *one.shape[1:])
        and relative_error(one, other[:size]) <= _TOLERANCE
        for one, other in tensors
    )


def _differ(one: object, other: object) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    return one.shape != other.shape or not torch.equal(one, other)


@dataclass(frozen=True, slots=True)
class Trial:
    """Inputs, and what eager gives for them, flat."""

    inputs: Inputs
    expected: list[object]


def eager(model: nn.Module, inputs: Inputs) -> list[object]:
    """What the model gives, flat; it and the inputs stay as they are."""
    copies = clone(inputs)
    with same_buffers(model):
        result = model(*copies.args, **copies.kwargs)
    know_dataclasses(result)
    return pytree.tree_leaves(result)


def several_samples(model: nn.Module, given: Inputs) -> Trial | None:
    """Eager on two samples at least; None where it takes no more than the example's one.

    The first sample is the example's, the others are other values: one run gives what the graph
    has to give for two inputs. It is traced with another batch size than this.
    """
    if given.batch_size is None:
        return None
    alike = grow_batch(given)
    inputs = vary_but_first(alike, seed=1)
    try:
        return Trial(inputs, eager(model, inputs))
    except Exception as error:  # whatever the user's code raises there
        if not takes(model, alike):
            return None
        text = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelNotSupported(
            f"capture at {type(model).__name__}: expected it to take other values of the kind of "
            f"the example's, got {type(error).__name__}: {text}. "
            "Integers were put in another order, and floating-point numbers drawn anew: give an "
            "example that allows it."
        ) from error


def compare(model: nn.Module, module: CapturedModule, inputs: Inputs, trial: Trial | None) -> Facts:
    """The graph against eager on `trial`; without, on the example and on a second input.

    Gives the facts at `inputs`, whose shapes are those of `trial`.
    """
    if trial is not None:
        facts = _compared(model, module, trial, f"batch {trial.inputs.batch_size}")
        if not _follows_values(module):
            return facts
    facts = _compared(model, module, Trial(inputs, eager(model, inputs)), "the example")
    if trial is None:
        second = vary(inputs, seed=1)
        _compared(model, module, Trial(second, eager(model, second)), "a second input")
    return facts


def _compared(model: nn.Module, module: CapturedModule, trial: Trial, name: str) -> Facts:
    """Require what eager gives; the facts that the run saw."""
    copies = clone(trial.inputs)
    with same_buffers(module):
        got, facts = observe(module, copies.args, copies.kwargs)
    try:
        _require_same(trial.expected, list(got), name, type(model).__name__)
    except ModelNotSupported:
        _require_repeats(model, trial)
        if not (is_low(model) and _same_in_float64(model, module, trial.inputs)):
            raise
    return facts


def _same_in_float64(model: nn.Module, module: CapturedModule, inputs: Inputs) -> bool:
    """Whether both compute the same where half precision does not round differently in each."""
    given = inputs_in_float64(inputs)
    with contextlib.suppress(Exception):  # whatever the user's code raises there, it says no
        return _all_alike(eager(in_float64(model), given), eager(in_float64(module), given))
    return False


def _all_alike(expected: list[object], got: list[object]) -> bool:
    ours = [leaf for leaf in expected if isinstance(leaf, torch.Tensor)]
    theirs = [leaf for leaf in got if isinstance(leaf, torch.Tensor)]
    return len(ours) == len(theirs) and all(
        one.shape == other.shape and relative_error(one, other) <= _TOLERANCE
        for one, other in zip(ours, theirs, strict=True)
    )


def require_same_state(
    model: nn.Module, module: CapturedModule, inputs: Inputs, assigned: set[str]
) -> None:
    """Require eager's outputs of a second call too, which finds what the first left in buffers."""
    wanted, got = _second_call(model, inputs), _second_call(module, inputs)
    if not _all_alike(wanted, got) and is_low(model):
        given = inputs_in_float64(inputs)
        wanted, got = (_second_call(in_float64(runs), given) for runs in (model, module))
    if not _all_alike(wanted, got):
        where = ", ".join(sorted(assigned))
        raise ModelNotSupported(
            f"capture at {type(model).__name__}, {where}: expected a second call to give what "
            "eager gives, got other values. The model keeps something from call to call that no "
            "graph holds: take it as an input, and return it.",
            where=where,
        )


def _second_call(model: nn.Module, inputs: Inputs) -> list[object]:
    with same_buffers(model):
        for _ in range(2):
            given = clone(inputs)
            outputs = pytree.tree_leaves(model(*given.args, **given.kwargs))
    return outputs


def _require_repeats(model: nn.Module, trial: Trial) -> None:
    """Blame no graph, and no export, for a model that differs from itself."""
    again = eager(model, trial.inputs)
    for index, (one, other) in enumerate(zip(trial.expected, again, strict=False)):
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            continue
        if one.shape != other.shape or relative_error(one, other) > _TOLERANCE:
            raise DrawsNumbers(
                f"capture at {type(model).__name__}, output {index}: expected the same outputs for "
                f"the same inputs, got others in a second run of eager (shapes {tuple(one.shape)} "
                f"and {tuple(other.shape)}). It draws random numbers in eval mode, or keeps "
                "something from call to call: let it do neither, or take that as an input."
            )


def true_reason(refusal: ModelNotSupported, model: nn.Module, given: Inputs) -> ModelNotSupported:
    """A refusal by export; DrawsNumbers in its place for a model that has others in each run."""
    try:
        _require_repeats(model, Trial(given, eager(model, given)))
    except DrawsNumbers as error:
        error.__cause__ = refusal
        return error
    return refusal


def _follows_values(module: CapturedModule) -> bool:
    """Whether a size or a number in the graph depends on values of the input, not on its shape.

    Read right after export, whose notes are those of this very graph then.
    """
    return any(free_unbacked_symbols(node.meta.get("val")) for node in module.graph.nodes)


def _require_same(expected: list[object], got: list[object], trial: str, name: str) -> None:
    tensors = [leaf for leaf in expected if isinstance(leaf, torch.Tensor)]
    found = [leaf for leaf in got if isinstance(leaf, torch.Tensor)]
    if len(tensors) != len(found):
        raise ModelNotSupported(
            f"capture at {name} on {trial}: expected {len(tensors)} output tensors as in eager, "
            f"got {len(found)}. Return the same structure for every input."
        )
    for index, (want, have) in enumerate(zip(tensors, found, strict=True)):
        if want.shape != have.shape:
            raise ModelNotSupported(
                f"capture at {name}, output {index} on {trial}: expected shape "
                f"{tuple(want.shape)} as in eager, got {tuple(have.shape)}. "
                "A size was baked in; avoid int(x.shape[0]) in the model."
            )
        error = relative_error(want, have)
        if not error <= _TOLERANCE:
            raise ModelNotSupported(
                f"capture at {name}, output {index} on {trial}: expected eager's values within "
                f"{_TOLERANCE:g} of their standard deviation, got an error of {error:.3g}. "
                "The model bakes a value of its input."
            )


def relative_error(want: torch.Tensor, have: torch.Tensor) -> float:
    """max |want - have| / standard deviation of `want`, of its size where it does not vary.

    What is not finite in one must be the same in the other (a masked score of -inf).
    """
    if want.numel() == 0 or torch.equal(want, have):
        return 0.0
    if not want.is_floating_point():
        return float("inf")
    finite = want.isfinite()
    if not bool(finite.all()):
        odd, other = want[~finite], have[~finite]
        if not torch.allclose(odd, other, equal_nan=True):
            return float("inf")
        want, have = want[finite], have[finite]
        if want.numel() == 0:
            return 0.0
    spread = want.double().std().item() if want.numel() > 1 else 0.0
    worst = (want.double() - have.double()).abs().max().item()
    return worst / (spread or max(want.double().abs().max().item(), 1e-30))
