"""Shrink: a new, smaller model from an analysis and a plan."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx

from edgeprune.errors import InternalError, require_a
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.graph.inputs import clone
from edgeprune.graph.labels import Value
from edgeprune.graph.module import CapturedModule, attribute, set_tensor
from edgeprune.graph.observe import Fact, Facts, TensorFact, observe, shapes_only
from edgeprune.graph.propagate import Labelled
from edgeprune.graph.value_sizes import sized_by_values
from edgeprune.planning.allocate import Request
from edgeprune.planning.plan import KeptAxis, Plan, make_plan
from edgeprune.surgery import rewrites, rewrites_readers
from edgeprune.surgery.operation import Operation
from edgeprune.surgery.rewriting import rewrite_for
from edgeprune.surgery.survivors import Survivors, WholeUnits, survivors, whole_units

aten = torch.ops.aten

# Numbers that stay in the cache between two cuts.
_BLOCK = 2**16

REWRITES = (rewrites, rewrites_readers)
"""Importing these modules registered what they rewrite."""


def shrink(analysis: Analysis, plan: Plan) -> CapturedModule:
    """Carry out `plan` on a copy of the analysed model: slice tensors, rewrite baked sizes.

    The analysed model and the user's are not changed. In eval mode.
    Raises `PlanError` when the plan does not fit, `InternalError` when the shrunk graph's shapes
    are not those that the surviving labels give.
    """
    require_a(Analysis, analysis, "shrink at analysis", "Write shrink(analyze(model, (x,)), plan).")
    require_a(Plan, plan, "shrink at plan", "Write shrink(analysis, plan(analysis, scores)).")
    return passes(analysis, plan)[-1].module


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One step of a removal: `plan` in units of `analysis`, and the `module` it leaves."""

    analysis: Analysis
    plan: Plan
    module: CapturedModule


def passes(analysis: Analysis, plan: Plan) -> tuple[Pass, ...]:
    """Carry out a plan: one pass, or several where a unit of the dense model is lost in part.

    With one head of four left, that head's dims are units of their own, which the dense model does
    not have. So what is whole units goes first, and the rest is looked for in what that leaves.
    """
    done: list[Pass] = []
    while True:
        found = whole_units(analysis, plan)
        if found.problem is None:
            done.append(Pass(analysis, plan, _carry_out(analysis, plan)))
            return tuple(done)
        if not any(goes.any() for goes in found.removed.values()):
            raise found.problem
        first = make_plan(analysis, found.removed, Request(plan.keep_fraction), plan.criterion)
        module = _carry_out(analysis, first)
        done.append(Pass(analysis, first, module))
        captured = analysis.captured
        analysis, plan = (
            analyze(
                module,
                captured.args,
                captured.kwargs,
                dynamic_batch=captured.dynamic_batch,
                exact_only=analysis.exact_only,
            ),
            _rest(plan, first, found),
        )


def _rest(plan: Plan, first: Plan, found: WholeUnits) -> Plan:
    """What `plan` removes beyond `first`, in the coordinates of what `first` leaves."""
    kept = {(axis.parameter, axis.dim): list(axis.keep) for axis in first.axes}
    axes = []
    for (name, dim), goes in found.rest.items():
        stays = ~goes[kept[name, dim]] if (name, dim) in kept else ~goes
        keep = tuple(stays.nonzero()[0].tolist())
        axes.append(KeptAxis(parameter=name, dim=dim, size=len(stays), keep=keep))
    return replace(plan, groups=(), axes=tuple(axes))


def _carry_out(analysis: Analysis, plan: Plan) -> CapturedModule:
    """Shrink a copy in one pass: `plan` removes whole units of `analysis`."""
    left = survivors(analysis, plan)
    module = _copy(analysis.captured.module, left)
    operation = Operation(module, left)
    _slice_tensors(module, left)
    for node in list(module.graph.nodes):
        found = rewrite_for(node.target)
        if found is not None and _touched(node, left):
            found(operation, node)
    module.graph.lint()
    module.recompile()
    module.eval()
    _require_shapes(analysis, left, module)
    return module


def _copy(dense: CapturedModule, left: Survivors) -> CapturedModule:
    """A copy of the module, but for the tensors that `_slice_tensors` replaces: these are shared.

    So the memory of the dense weights is not needed a second time.
    """
    shared: dict[int, object] = {}
    for node in dense.graph.nodes:
        value = left.analysis.walk.values.get(node.name)
        if node.op == "get_attr" and isinstance(value, Value) and left.along(value):
            tensor = attribute(dense, str(node.target))
            shared[id(tensor)] = tensor
    return copy.deepcopy(dense, shared)


def _slice_tensors(module: CapturedModule, left: Survivors) -> None:
    """Every name of a tensor that shrinks gets the very same shrunk tensor (in place)."""
    tensors: dict[str, object] = dict(module.state_dict(keep_vars=True))
    values: dict[str, Value] = {}
    for node in module.graph.nodes:
        value = left.analysis.walk.values.get(node.name)
        if node.op == "get_attr" and isinstance(value, Value):
            values[str(node.target)] = value
    tensors |= {name: attribute(module, name) for name in values}
    smaller: dict[int, torch.Tensor] = {}
    for name, value in values.items():
        tensor, kept = tensors[name], left.along(value)
        if not isinstance(tensor, torch.Tensor) or not kept or id(tensor) in smaller:
            continue
        set_tensor(module, name, _sliced(tensor.detach(), kept))
        replaced = attribute(module, name)
        if isinstance(replaced, torch.Tensor):
            smaller[id(tensor)] = replaced
    for name, tensor in tensors.items():
        if id(tensor) in smaller:
            _tie(module, name, smaller[id(tensor)])


def _sliced(tensor: torch.Tensor, kept: dict[int, torch.Tensor]) -> torch.Tensor:
    """The tensor at the kept positions of every dim, in memory of its own.

    A few rows at a time where several dims shrink: what one dim leaves is not written out whole.
    """
    here = {dim: positions.to(tensor.device) for dim, positions in kept.items()}
    (first, rows), *rest = sorted(here.items())
    if not rest:
        return tensor.index_select(first, rows).contiguous()
    shape = [len(here[dim]) if dim in here else size for dim, size in enumerate(tensor.shape)]
    made = tensor.new_empty(shape)
    step = max(1, _BLOCK * len(rows) // max(made.numel(), 1))
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        part = tensor.index_select(first, chosen)
        for dim, positions in rest:
            part = part.index_select(dim, positions)
        made.narrow(first, start, len(chosen)).copy_(part)
    return made


def _tie(module: CapturedModule, target: str, tensor: torch.Tensor) -> None:
    path, _, name = target.rpartition(".")
    setattr(module.get_submodule(path), name, tensor)


def _touched(node: fx.Node, left: Survivors) -> bool:
    values = left.analysis.walk.values
    names = [node.name, *(source.name for source in node.all_input_nodes)]
    return any(left.changes(values.get(name)) for name in names)


def _require_shapes(analysis: Analysis, left: Survivors, module: CapturedModule) -> None:
    """Every value of the shrunk graph has the shape that its surviving labels give.

    Shapes are computed without values first, as the proof runs the graph anyway; where that does
    not go, or gives another shape (a kernel without data is at times careless), a run decides.
    """
    inputs = clone(analysis.captured.inputs)
    facts = shapes_only(module, inputs.args, inputs.kwargs)
    if facts is not None and _mismatch(analysis, left, module, facts) is None:
        return
    try:
        _, facts = observe(module, inputs.args, inputs.kwargs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InternalError(
            f"surgery: expected the shrunk graph to run, got {error}. Report the model."
        ) from error
    wrong = _mismatch(analysis, left, module, facts)
    if wrong is not None:
        node, expected, got = wrong
        raise InternalError(
            f"surgery at {node.name} ({node.meta.get('where')}): expected shape {expected} "
            f"after removal, got {got}. {node.target} needs a rewrite; report it.",
            where=node.name,
        )


def _mismatch(
    analysis: Analysis, left: Survivors, module: CapturedModule, facts: Facts
) -> tuple[fx.Node, tuple[int, ...], tuple[int, ...]] | None:
    """The first node whose shape is another than its labels give, and both shapes.

    A size that follows values is held against its labels only where they lose positions.
    """
    loose = sized_by_values(module.graph, facts)
    for node in module.graph.nodes:
        value = analysis.walk.values.get(node.name)
        if any(user.meta.get("scales") == node.name for user in node.users):
            continue
        for expected, got in _shapes(left, value, facts.get(node.name), node.name in loose):
            # A part of no elements (what a full rotation leaves) has no labels to say its sizes.
            if expected != got and not (0 in expected and 0 in got):
                return node, expected, got
    return None


def _shapes(
    left: Survivors, value: Labelled, fact: Fact, loose: bool
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Expected and got, of every member; of a `loose` value where labels lose positions alone."""
    if (
        isinstance(value, tuple)
        and isinstance(fact, tuple)
        and (len(value) == len(fact) or not loose)
    ):
        for member, part in zip(value, fact, strict=True):
            yield from _shapes(left, member, part, loose)
    if isinstance(value, Value) and isinstance(fact, TensorFact):
        expected, got = left.shape(value), fact.shape
        if loose and len(expected) == len(got):
            dims = sorted(left.along(value))
            expected, got = tuple(expected[d] for d in dims), tuple(got[d] for d in dims)
        yield expected, got
