"""A graph that torch.export made elsewhere (a `.pt2` file, `ep.module()`), taken as it is.

It is not exported again: its shapes stay as dynamic as they are, and its nodes keep the module
path and the source line that they were exported with.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import fx, nn

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.aliases import shared_writes, storages, written
from edgeprune.graph.constants import hold_constants_
from edgeprune.graph.inline import inline_regions
from edgeprune.graph.module import (
    CapturedModule,
    add_training_flags,
    attribute,
    drop_unread,
    set_tensor,
    trains,
)
from edgeprune.graph.provenance import module_path
from edgeprune.graph.unstack import unstack

aten = torch.ops.aten

# What export notes about sizes and dtypes of the example; after surgery it would be wrong.
_NOTES = (aten._assert_scalar.default, aten._assert_tensor_metadata.default)
_GUARDS_FUNCTION = "_guards_fn"
_PYTHON = tuple(vars(operator)[name] for name in operator.__all__)


def is_exported(model: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Whether a module is a graph of ATen operators as torch.export makes it."""
    if not isinstance(model, fx.GraphModule):
        return False
    calls = [node for node in model.graph.nodes if node.op.startswith("call_")]
    return any(isinstance(node.target, torch._ops.OpOverload) for node in calls) and all(
        isinstance(node.target, torch._ops.OpOverload)
        or node.target in _PYTHON
        or getattr(node.target, "__module__", None) in ("math", "torch")
        or (node.op == "call_module" and node.target == _GUARDS_FUNCTION)
        for node in calls
    )


def from_exported(model: fx.GraphModule) -> CapturedModule:
    """A copy of the same graph, without guards, as a module that trains.

    Raises ModelNotSupported for a graph that was exported in training mode.
    """
    for node in model.graph.nodes:
        if trains(node):
            raise ModelNotSupported(
                f"capture at {module_path(node) or node.name} of the exported graph: expected "
                f"{node.target} in eval mode, got it in training mode. Export model.eval().",
                where=module_path(node) or node.name,
            )
    return as_captured(copy.deepcopy(model), original=None)


def _drop_replaced_caches_(module: fx.GraphModule) -> None:
    """Leave out writing a buffer of another size, which torch.export notes and cannot run.

    A forward that puts a new table in the place of a smaller buffer makes the table in the graph;
    the buffer itself is not read.
    """
    for node in list(module.graph.nodes):
        if node.target is not aten.copy_.default or node.users:
            continue
        buffer, made = node.args[0], node.args[1]
        if not (isinstance(buffer, fx.Node) and isinstance(made, fx.Node)):
            continue
        if buffer.op != "get_attr" or len(buffer.users) != 1:
            continue
        old, new = attribute(module, str(buffer.target)), made.meta.get("val")
        if not (isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)):
            continue
        if old.shape != new.shape:
            module.graph.erase_node(node)
            module.graph.erase_node(buffer)


def _own_what_is_written_(module: fx.GraphModule) -> None:
    """Copy the buffers that the graph writes in place: the user's model keeps its own as it is."""
    root = storages(module.graph)
    roots = {root[into] for node in module.graph.nodes for into in written(node)}
    for name in {str(node.target) for node in roots if node.op == "get_attr"}:
        buffer = attribute(module, name)
        if isinstance(buffer, torch.Tensor) and not isinstance(buffer, nn.Parameter):
            set_tensor(module, name, buffer.clone())


def _drop_empty_parts_(module: fx.GraphModule) -> None:
    """Leave out of a concatenation what has no elements: class tokens of which there are none.

    It adds nothing to the values, and has no positions to say which channels it has.
    """
    for node in module.graph.nodes:
        if node.target is not aten.cat.default:
            continue
        parts = list(node.args[0])
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        values = [part.meta.get("val") for part in parts]
        if not all(isinstance(value, torch.Tensor) and value.dim() > 0 for value in values):
            continue
        if len({(value.dtype, value.dim()) for value in values}) == 1:
            stay = [p for p, v in zip(parts, values, strict=True) if not _is_zero(v.shape[dim])]
            if 0 < len(stay) < len(parts):
                node.update_arg(0, stay)
                for part in parts:
                    if not part.users and part.target is aten.slice.Tensor:
                        module.graph.erase_node(part)


def _let_views_copy_(module: fx.GraphModule) -> None:
    """Write `view` as `reshape`, which is the same where it can be, except where one is written to.

    torch.export leaves out a `contiguous()` that changed nothing in its run. Another kernel, which
    other sizes or training choose, lays its result out in another order, and `view` refuses that:
    attention whose values have a head dim of their own, attention with dropout.
    """
    shared, root = shared_writes(module.graph), storages(module.graph)
    for node in module.graph.nodes:
        if node.target is not aten.view.default:
            continue
        if node.name not in shared or _is_alone(node.args[0], root):
            node.target = aten.reshape.default


def _is_alone(value: object, root: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether nothing reads the storage of a value but the one view that is made of it.

    Then a write through the view may as well go into a copy.
    """
    while isinstance(value, fx.Node) and len(value.users) == 1:
        if root[value] is value:
            return value.op == "call_function"
        value = next((n for n in value.all_input_nodes if root[n] is root[value]), None)
    return False


def _is_zero(size: int | torch.SymInt) -> bool:
    return isinstance(size, int) and size == 0


def as_captured(module: fx.GraphModule, original: nn.Module | None) -> CapturedModule:
    """The module that users get, of the graph of an exported program (whose nodes it takes over).

    original: the module that was exported; None where it is not known.
    """
    # CapturedModule() writes the code of the graph as it is then; no need to do it before.
    inline_regions(module)
    for node in list(module.graph.nodes):
        if node.target in _NOTES or node.target == _GUARDS_FUNCTION:
            module.graph.erase_node(node)
        else:
            node.meta["module"] = module_path(node)
    _drop_replaced_caches_(module)
    _own_what_is_written_(module)
    tables = hold_constants_(module)
    _drop_empty_parts_(module)
    _let_views_copy_(module)
    unstack(module.graph)
    captured = CapturedModule(module, module.graph)
    captured.training = False
    captured.tables = tables
    drop_unread(captured)
    add_training_flags(captured, original)
    captured.recompile()
    return captured
