"""The user's own class back: a copy of the user's module with shrunk tensors and true attributes.

The shrunk graph is the model; this is the same model in the class that the user wrote, where the
class allows it: which integer attributes must change, and to what, is traced and solved for
(`user_trace`, `user_sizes`), and the result is accepted only when it computes what the graph does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.errors import ModelNotSupported, UsageError
from edgeprune.graph.inputs import Inputs, clone, resize_batch, vary
from edgeprune.graph.module import CapturedModule
from edgeprune.graph.observe import Facts, observe
from edgeprune.graph.outputs import only_known
from edgeprune.graph.precision import in_float64, inputs_in_float64
from edgeprune.graph.provenance import error_line
from edgeprune.recipe.trial import same_buffers
from edgeprune.surgery.call import Call
from edgeprune.surgery.deviation import deviation
from edgeprune.surgery.prove import TOLERANCE_FLOAT32, TOLERANCE_FLOAT64
from edgeprune.surgery.prune import Pruned
from edgeprune.surgery.sightings import watch_graph
from edgeprune.surgery.survivors import survivors
from edgeprune.surgery.tagged import Values, spelled
from edgeprune.surgery.user_constants import owners
from edgeprune.surgery.user_factors import Moved, factors, move_factors
from edgeprune.surgery.user_layers import describe_truly
from edgeprune.surgery.user_sizes import solve
from edgeprune.surgery.user_tensors import put_tensors, tensors_of, unfold
from edgeprune.surgery.user_trace import Trace, integers, read, renew, share, trace, write

M = TypeVar("M", bound=nn.Module)

_INSTEAD = "Use pruned.model, which is the pruned model, or change that line"


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """A number of the class, or a tuple or list of integers, that is another one now.

    `module` is the path of the submodule, `""` for the model itself.
    """

    module: str
    attribute: str
    before: float | tuple[int, ...] | None
    after: float | tuple[int, ...]

    def __str__(self) -> str:
        name = f"{self.module}.{self.attribute}" if self.module else self.attribute
        return f"{name}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Returned(Generic[M]):
    """A pruned model in the user's own class.

    `module` is of the class of the user's model, with its modes, ties and `requires_grad`, and
    shares no memory with it or with `pruned.model`. `changes` are the attributes that are not the
    user's, in module order. `unread` are tensors that eval mode does not read (auxiliary heads):
    the pruned model has none of them, here they are the user's, at full width. `folded` are
    weights that were computed from others (weight_norm) and are plain parameters now. `rescaled`
    are weights that took a factor which the graph has and the class does not (`user_factors`); all
    others are the pruned model's.
    """

    module: M
    changes: tuple[AttributeChange, ...]
    unread: tuple[str, ...]
    folded: tuple[str, ...]
    rescaled: tuple[str, ...]


def to_module(pruned: Pruned, model: M, *, seed: int = 0) -> Returned[M]:
    """The pruned model as an instance of the class of `model`, which is not changed.

    `model` is the one that `pruned.analysis` is of. Weights are those of `pruned.model`, repaired
    and trained as they are. Accepted when its outputs are those of `pruned.model` on structured
    inputs, at the example's batch size, at 1 and at one more where that is free: max |a - b| at
    most 1e-4 of the output's standard deviation in float32, else 1e-8 in float64.

    After several rounds, return each to its class: `small = to_module(first, model).module`, then
    `to_module(prune(small, ...), small)`.
    Raises `UsageError` when `model` is not the analysed one, `ModelNotSupported` when its class
    cannot take the shrunk sizes, with the line that stands in the way.
    """
    _require_own_class(pruned, model)
    captured = pruned.analysis.captured
    inputs = vary(captured.inputs, seed)
    plain = _shared(model)
    folded = unfold(plain, pruned.model)
    _require_same_names(plain, captured.module)
    left = survivors(pruned.analysis, pruned.plan)
    sightings, dense = watch_graph(captured.module, inputs, left)
    after = {name: tuple(tensor.shape) for name, tensor in tensors_of(pruned.model).items()}
    try:
        seen = trace(plain, inputs, sightings, after, pruned.model.graph)
    except Exception as error:  # whatever the user's code makes of integers of another class
        _refuse(error_line(error) or type(model).__name__, "forward to run", str(error), error)
    if not deviation(seen.outputs, dense) <= TOLERANCE_FLOAT32:
        raise UsageError(
            f"to_module at {type(model).__name__}: expected the model that was analysed, got one "
            f"with other outputs ({deviation(seen.outputs, dense):.3g} standard deviations away). "
            "Give the model that pruned.analysis is of.",
        )
    sizes = solve(seen.dense, seen.calls, list(seen.log.comparisons))
    if sizes.obstacle is not None:
        _refuse_call(sizes.obstacle)
    small = share(plain)
    unread = put_tensors(small, pruned.model, model)
    _put_sizes(small, sizes.values)
    modes = {path: module.training for path, module in model.named_modules()}
    for path, module in small.named_modules():
        # A layer that restores itself by its __init__ comes out of a copy in training mode.
        module.training = modes.get(path, module.training)
    moves = factors(pruned.model, captured.module, _facts(pruned.model, inputs))
    nodes = [move.constant.node for move in moves if move.constant is not None]
    moved = move_factors(small, moves, owners(plain, captured.module, nodes, inputs))
    # Before the class runs, which may count its calls.
    changes = tuple(_changes(plain, small))
    _require_same_outputs(small, pruned, seen, inputs, moved)
    floats = (AttributeChange(p.module, p.attribute, old, new) for p, old, new in moved.constants)
    return Returned(
        module=small,
        changes=(*changes, *floats),
        unread=unread,
        folded=folded,
        rescaled=tuple(moved.weights),
    )


def _put_sizes(small: nn.Module, values: Values) -> None:
    changed: set[str] = set()
    for place, container, name, entry in list(integers(small)):
        now = read(container, name, entry)
        wanted = values.get(place, now)
        if wanted != now:
            write(container, name, entry, wanted)
            changed.add(place.module)
    renew(small, changed)
    for module in small.modules():
        describe_truly(module)


def _facts(graph: CapturedModule, inputs: Inputs) -> Facts:
    copies = clone(inputs)
    with _in_eval_mode(graph), same_buffers(graph):
        return observe(graph, copies.args, dict(copies.kwargs))[1]


def _require_own_class(pruned: object, model: object) -> None:
    if not isinstance(pruned, Pruned) or not isinstance(model, nn.Module):
        raise UsageError(
            f"to_module at its arguments: expected a result of prune() and your model, got "
            f"{type(pruned).__name__} and {type(model).__name__}. Write to_module(pruned, model)."
        )
    if isinstance(model, torch.fx.GraphModule):
        raise UsageError(
            f"to_module at {type(model).__name__}: expected a model of your own class, got a "
            "graph. Give the model that you gave to prune(); pruned.model is the pruned graph."
        )


def _shared(model: M) -> M:
    try:
        return share(model)
    except Exception as error:  # a user's __deepcopy__, a lock, an open file
        _refuse(type(model).__name__, "a module that copies", str(error), error)


def _require_same_names(model: nn.Module, captured: CapturedModule) -> None:
    own = tensors_of(model)
    for name, tensor in captured.named_parameters(remove_duplicate=False):
        got = tuple(own[name].shape) if name in own else "none of that name"
        if got != tuple(tensor.shape):
            raise UsageError(
                f"to_module at {name}: expected shape {tuple(tensor.shape)} as in the model that "
                f"was analysed, got {got}. Give the model that pruned.analysis is of; after "
                "several rounds, return each round to your class by itself.",
                where=name,
            )


def _refuse(where: str, wanted: str, got: str, cause: BaseException | None = None) -> NoReturn:
    raise ModelNotSupported(
        f"to_module at {where}: expected {wanted}, got {got}. {_INSTEAD}.", where=where
    ) from cause


def _refuse_call(call: Call) -> NoReturn:
    """Say which call has sizes that no attribute can mend."""
    written = ", ".join(spelled(number.expression) for number in call.numbers)
    decided = f"{written} cannot become that" if call.places else "its sizes are written in it"
    before = " and ".join(str(old) for old, _ in call.results) or "its result"
    after = " and ".join(str(new) for _, new in call.results if new is not None) or "less"
    count = "" if call.count is None else f" and {call.count.after} groups"
    _refuse(
        call.where or "an unknown line",
        f"{call.name}() to give {after}{count} in place of {before}",
        f"a call that cannot: {decided}",
    )


def _require_same_outputs(
    small: nn.Module, pruned: Pruned, seen: Trace, inputs: Inputs, moved: Moved
) -> None:
    captured = pruned.analysis.captured
    trials = [inputs]
    if captured.dynamic_batch and inputs.batch_size is not None:
        trials += [resize_batch(inputs, inputs.batch_size + 1), resize_batch(inputs, 1)]
    with _in_eval_mode(small), _in_eval_mode(pruned.model), torch.no_grad():
        for trial in trials:
            try:
                got = _outputs(small, trial)
            except Exception as error:  # a check in the user's code, a kernel's complaint
                place = error_line(error) or type(small).__name__
                _refuse(place, "the class to run at the new sizes", str(error), error)
            want = _outputs(pruned.model, trial)
            if not deviation(got, want) <= TOLERANCE_FLOAT32 and not _same_in_float64(
                small, pruned.model, trial
            ):
                place = _first_difference(small, pruned.model, seen, trial, moved.nodes)
                why = (
                    "a scale that stays, a mean over the dense width or an order of positions has "
                    "no place in this class"
                )
                if moved.coarse is not None:
                    why = f"{moved.coarse} is too coarse for what its weights have to take; prune "
                    why += "it in float32, and cast what comes back"
                _refuse(
                    place,
                    "what the pruned graph computes there",
                    f"outputs {deviation(got, want):.3g} standard deviations away: {why}",
                )


def _same_in_float64(small: nn.Module, graph: CapturedModule, inputs: Inputs) -> bool:
    precise = inputs_in_float64(inputs)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        got = _outputs(in_float64(small), precise)
        return deviation(got, _outputs(in_float64(graph), precise)) <= TOLERANCE_FLOAT64
    except RuntimeError:  # the class names float32 somewhere: then it is not the same
        return False
    finally:
        torch.set_default_dtype(before)


def _first_difference(
    small: nn.Module, graph: CapturedModule, seen: Trace, inputs: Inputs, moved: Set[str]
) -> str:
    """The user's line whose value, a node's in the dense model, is none of the pruned graph's.

    `moved` are nodes whose values the class is to have a factor away.
    """
    sightings, _ = watch_graph(graph, inputs)
    nodes = {node.name for node in graph.graph.nodes} - moved
    now = trace(small, inputs, sightings, {}, graph.graph)
    for before, after in zip(seen.calls, now.calls, strict=False):
        if before.node in nodes and not after.node:
            return f"{after.where} ({after.name})"
    return "the output"


def _outputs(model: nn.Module, inputs: Inputs) -> tuple[object, ...]:
    copies = clone(inputs)
    with same_buffers(model):
        return tuple(pytree.tree_leaves(only_known(model(*copies.args, **copies.kwargs))))


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _changes(before: nn.Module, after: nn.Module) -> Iterator[AttributeChange]:
    """Attributes that differ, each whole: a tuple is one attribute."""
    old = _by_attribute(before)
    for (module, attribute), value in _by_attribute(after).items():
        if old.get((module, attribute)) not in (None, value):
            yield AttributeChange(module, attribute, old[module, attribute], value)


def _by_attribute(model: nn.Module) -> Mapping[tuple[str, str], int | tuple[int, ...]]:
    found: dict[tuple[str, str], int | tuple[int, ...]] = {}
    for place, container, name, entry in integers(model):
        value = read(container, name, entry)
        key = (place.module, place.attribute)
        earlier = found.get(key, ())
        found[key] = value if entry is None else (*_as_tuple(earlier), value)
    return found


def _as_tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
