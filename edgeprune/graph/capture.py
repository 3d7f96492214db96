"""Capture: one ATen graph of the user's model in eval mode, compared with eager.

The raw export graph is kept, not the functionalised one: its batch_norm and dropout nodes carry
the training mode, so a shrunk graph can be trained (docs/decisions/0001).
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import ShapesCollection

from edgeprune.errors import DrawsNumbers, EdgepruneError, ModelNotSupported, UsageError
from edgeprune.graph.arguments import as_inputs, require_module
from edgeprune.graph.assigned import (
    assigned_buffers,
    drop_appended_copies_,
    same_containers,
)
from edgeprune.graph.comparison import (
    compare,
    eager,
    require_same_state,
    several_samples,
    takes,
    takes_another_batch,
    treats_samples_alike,
    true_reason,
)
from edgeprune.graph.drafting import Shapes, assumptions, draft, other_way, require_one_way
from edgeprune.graph.exported import as_captured, from_exported, is_exported
from edgeprune.graph.inputs import Inputs, clone, grow_batch, is_batched, resize_batch
from edgeprune.graph.module import CapturedModule
from edgeprune.graph.observe import Facts, observe
from edgeprune.graph.outputs import foreign, know_dataclasses, known_outputs
from edgeprune.graph.provenance import error_line, keep_only_provenance, module_path
from edgeprune.graph.quiet import quietly
from edgeprune.graph.untold import exported_untold
from edgeprune.recipe.trial import same_buffers

_BATCH_FIXED = "dynamic batch: the model fixes its batch size, so the graph does too"


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A model as one graph: the product's representation of it.

    `facts` holds shape and dtype of every node at `args`, `kwargs` (batch of at least 2 where
    the batch is dynamic). `lost` says what capture in eval mode dropped.
    """

    module: CapturedModule
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    facts: Facts
    dynamic_batch: bool
    lost: tuple[str, ...]

    @property
    def inputs(self) -> Inputs:
        """Example inputs as one value."""
        return Inputs(args=self.args, kwargs=dict(self.kwargs))


def capture(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None = None,
    *,
    dynamic_batch: bool = True,
) -> Captured:
    """Capture `model` (not changed) with example inputs, batch first.

    A graph that torch.export made already (`ep.module()`) is taken as it is.
    Raises `ModelNotSupported` when torch.export refuses the model, or when the captured graph and
    eager differ on the example or on a second input; where the batch is dynamic both are samples
    of one run, with another batch size than the graph was traced with.
    """
    require_module(model)
    know_dataclasses((args, kwargs))
    given = as_inputs(args, kwargs)
    if isinstance(model, CapturedModule):
        return _recapture(copy.deepcopy(model), given, dynamic_batch, _is_free)
    if is_exported(model):
        found = _recapture(from_exported(model), given, dynamic_batch, treats_samples_alike)
        return replace(found, lost=(*found.lost, *_dropped(model, found.module)))
    if given.batch_size == 0:
        raise UsageError(
            "capture at the example inputs: expected at least one sample, got a batch of 0. "
            "Give one or more."
        )
    # A draft draws numbers; the user's sequence of them goes on as if nothing had been.
    with _eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        assigned: set[str] = set()
        trial = several_samples(model, given) if dynamic_batch else None
        outputs = _outputs(model, given) if trial is None else trial.expected
        left_out = foreign(model, outputs)
        with known_outputs(model) if left_out else contextlib.nullcontext():
            program, is_dynamic = _export(model, given, trial is not None, assigned)
        inputs = grow_batch(given) if is_dynamic else given
        module = as_captured(program.module(check_guards=False), model)
        assumed = assumptions(program)
        lost = (*assumed, *left_out, *_lost(model, module, dynamic_batch and not is_dynamic))
        try:
            facts = compare(model, module, inputs, trial if is_dynamic else None)
            if assigned:
                with _inputs_that_it_takes(model):
                    require_same_state(model, module, inputs, assigned)
        except DrawsNumbers:
            raise
        except ModelNotSupported as error:
            if assumed:
                raise other_way(assumed, "other outputs than eager's") from error
            raise
        if assumed:
            require_one_way(model, module, inputs, assumed)
    keep_only_provenance(module.graph)
    module.fixed_batch = not is_dynamic
    return Captured(
        module=module,
        args=inputs.args,
        kwargs=inputs.kwargs,
        facts=facts,
        dynamic_batch=is_dynamic,
        lost=lost,
    )


def _is_free(module: CapturedModule, given: Inputs) -> bool:
    return not module.fixed_batch and takes_another_batch(module, given)


def _recapture(
    module: CapturedModule,
    given: Inputs,
    dynamic_batch: bool,
    is_free: Callable[[CapturedModule, Inputs], bool],
) -> Captured:
    """A graph is its own capture: nothing in it depends on stale metadata. Takes `module` over."""
    module.eval()
    keep_only_provenance(module.graph)
    _require_as_many(module, given)
    with torch.no_grad():
        free = dynamic_batch and is_free(module, given)
    module.fixed_batch = not free
    inputs = grow_batch(given) if free else given
    copies = clone(inputs)
    with same_buffers(module), _inputs_that_it_takes(module):
        _, facts = observe(module, copies.args, copies.kwargs)
    return Captured(
        module=module,
        args=inputs.args,
        kwargs=inputs.kwargs,
        facts=facts,
        dynamic_batch=free,
        lost=(_BATCH_FIXED,) if dynamic_batch and not free else (),
    )


def _require_as_many(module: CapturedModule, given: Inputs) -> None:
    taken = [node.target for node in module.graph.nodes if node.op == "placeholder"]
    if len(taken) != len(given.leaves()):
        raise UsageError(
            f"capture at the example inputs: expected {len(taken)} ({', '.join(map(str, taken))}), "
            f"got {len(given.leaves())}. Give what the model was exported with."
        )


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode, and each back in its own mode afterwards.

    The captured graph shares the model's tensors, so every run starts from the same buffers too.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with same_buffers(model), same_containers(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _export(
    model: nn.Module, given: Inputs, dynamic_batch: bool, assigned: set[str]
) -> tuple[ExportedProgram, bool]:
    """Export in the first of `_WAYS` that works; with a dynamic batch if the model allows it.

    A dynamic batch is traced with one sample more than the run that is compared with eager has:
    what export bakes in is right for the traced batch alone. A fixed batch is the example's own.
    `assigned` gets the names of the buffers that forward assigned meanwhile.
    """
    if dynamic_batch:
        traced = resize_batch(given, max(given.batch_size or 0, 2) + 1)
        ways = [(Dim.DYNAMIC, _NON_STRICT), *((Dim.AUTO, way) for way in _WAYS)]
        found = _first_that_works(model, given, traced, ways, assigned)
        if isinstance(found, ExportedProgram) and is_dynamic(found):
            return found, True
        if isinstance(found, ModelNotSupported) and takes(model, traced):
            raise true_reason(found, model, given)
    fixed = [(None, way) for way in _WAYS]
    found = _first_that_works(model, given, given, fixed, assigned)
    if isinstance(found, ModelNotSupported):
        raise true_reason(found, model, given)
    return found, False


def _first_that_works(
    model: nn.Module,
    given: Inputs,
    traced: Inputs,
    ways: Sequence[tuple[object, str]],
    assigned: set[str],
) -> ExportedProgram | ModelNotSupported:
    """The program of the first way to export that works at `traced`, or why none does."""
    failures: dict[str, dict[str, None]] = {}  # ways by what they said
    place = ""
    for dim, way in ways:
        copies = clone(traced)
        try:
            # A refused attempt prints its graph, and warns of it. A table that forward puts into a
            # buffer is one without values while torch.export runs.
            watched = way != _STRICT
            watch = assigned_buffers(model, assigned) if watched else contextlib.nullcontext()
            with quietly(), same_buffers(model), watch:
                shapes = None if dim is None else _shapes(model, given, copies, dim)
                program = _WAYS[way](model, copies, shapes)
            if watched:
                drop_appended_copies_(program)
            return program
        except Exception as error:  # torch.export raises anything, user code included
            failures.setdefault(_first_lines(error), {})[way] = None
            cause = error
            place = place or error_line(error)
    where = " ".join(filter(None, (type(model).__name__, place)))
    refusal = ModelNotSupported(
        f"capture at {where}: expected a graph from torch.export, got "
        + " | ".join(f"{', '.join(tried)}: {said}" for said, tried in failures.items())
        + f". {_remedy([*failures])}",
        where=place or where,
    )
    refusal.__cause__ = cause
    return refusal


def _remedy(failures: list[str]) -> str:
    if any("pack_padded_sequence" in failure for failure in failures):
        return "Run the recurrent layer on the padded sequence; no graph holds packed ones."
    if any("data-dependent" in failure for failure in failures):
        return "Rewrite that line without Python control flow that depends on values of the input."
    return "Rewrite that line so that torch.export takes it."


@contextlib.contextmanager
def _inputs_that_it_takes(model: nn.Module) -> Iterator[None]:
    """`UsageError` if the model itself raises: then export is not to blame."""
    try:
        yield
    except EdgepruneError:
        raise
    except Exception as error:  # whatever the user's code raises
        where = " ".join(filter(None, (type(model).__name__, error_line(error))))
        raise UsageError(
            f"capture at {where}: expected the model to run on the example inputs, got "
            f"{_first_lines(error)}. Give inputs that the model takes.",
            where=where,
        ) from error


def _outputs(model: nn.Module, inputs: Inputs) -> list[object]:
    with _inputs_that_it_takes(model):
        return eager(model, inputs)


def _exported(model: nn.Module, inputs: Inputs, shapes: Shapes, *, strict: bool) -> ExportedProgram:
    return torch.export.export(
        model, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=strict
    )


_NON_STRICT, _STRICT = "non-strict", "strict"
_WAYS: dict[str, Callable[[nn.Module, Inputs, Shapes], ExportedProgram]] = {
    _NON_STRICT: functools.partial(_exported, strict=False),
    "the way of eager": exported_untold,
    _STRICT: functools.partial(_exported, strict=True),
    "draft": draft,
}


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:600].rstrip('.')}"


def _shapes(model: nn.Module, given: Inputs, traced: Inputs, dim: object) -> Shapes:
    """`dim` for the batch of every tensor of `traced` that has one in `given`."""
    # torch ships these two without annotations.
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf, own in zip(traced.leaves(), given.leaves(), strict=True):
        if is_batched(own, given.batch_size):
            shapes[leaf] = {0: dim}
    result: Shapes = shapes.dynamic_shapes(  # type: ignore[no-untyped-call]
        model, traced.args, traced.kwargs
    )
    return result


def is_dynamic(program: ExportedProgram) -> bool:
    """Whether a size of an input is free: one that export found to be fixed is a number."""
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"]
    return any(
        isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None
        for value in values
        if isinstance(value, torch.Tensor)
        for size in value.shape
    )


def _dropped(model: nn.Module, module: CapturedModule) -> tuple[str, ...]:
    """Modules of an exported graph whose tensors it never reads; their classes are not known."""
    names = set(model.state_dict()) - set(module.state_dict())
    owners = dict.fromkeys(name.rpartition(".")[0] for name in model.state_dict() if name in names)
    return tuple(f"{path or 'a bare tensor'} does nothing in eval mode" for path in owners)


def _lost(model: nn.Module, module: CapturedModule, batch_fixed: bool) -> tuple[str, ...]:
    """What the graph in eval mode no longer has, for the user to know."""
    lost = [_BATCH_FIXED] if batch_fixed else []
    nodes = list(module.graph.nodes)
    visited = {module_path(node) for node in nodes if node.op == "call_function"}
    # A leaf whose weights another module reads directly: MultiheadAttention.out_proj.
    visited |= {
        str(node.target).rpartition(".")[0]
        for node in nodes
        if node.op == "get_attr" and node.users
    }
    for path, submodule in model.named_modules():
        is_leaf = next(submodule.children(), None) is None and path
        if is_leaf and path not in visited and not isinstance(submodule, nn.Identity):
            lost.append(f"{path} ({type(submodule).__name__}) does nothing in eval mode")
    return tuple(lost)
