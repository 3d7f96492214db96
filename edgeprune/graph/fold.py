"""Fold re-parametrised weights (weight_norm, spectral norm, weight standardisation) into weights.

Such a weight is computed from parameters through a statistic over the very axes that pruning
shortens: cutting the parameters would change the weights that stay. The effective weight is what
the network uses, so it becomes the parameter; the ones it was computed from go.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import torch
from torch import fx, nn
from torch.fx.node import Argument

from edgeprune.graph.capture import Captured
from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.observe import describe
from edgeprune.graph.operators import cell_parameters
from edgeprune.graph.registry import rule_for
from edgeprune.graph.rules.convolution import convolution, transposed
from edgeprune.graph.rules.every import FAMILIES
from edgeprune.graph.rules.matrix import addmm, linear, matmul
from edgeprune.graph.rules.normalisation import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from edgeprune.graph.rules.recurrent import cell, recurrent
from edgeprune.graph.rules.reduction import additive, along, extreme, norm, selective, vector_norm
from edgeprune.graph.rules.spread import spread

# Rules whose operators mix positions of an axis: a weight behind one is re-parametrised.
_MIXING = (
    *(additive, along, extreme, norm, selective, spread, vector_norm),
    *(batch_norm, group_norm, instance_norm, layer_norm, rms_norm),
    *(linear, matmul, addmm),
)
_READERS = (linear, matmul, addmm, convolution, transposed, recurrent, cell)
_WEIGHT_OPERANDS = (1, 2)


def fold(captured: Captured) -> Captured:
    """A capture whose weights are all parameters; the same object where nothing needs folding."""
    if not FAMILIES:
        raise RuntimeError("no rule is registered")
    frontier = _reparametrised(captured.module.graph)
    if not frontier:
        return captured
    names = [node.name for node in frontier]
    module = copy.deepcopy(captured.module)
    _drop_unread(module.graph)
    facts = dict(captured.facts)
    nodes = {node.name: node for node in module.graph.nodes}
    for name in names:
        new = _replace(module, nodes[name])
        facts[new.name] = describe(attribute(module, str(new.target)))
    module.recompile()
    return replace(captured, module=module, facts=facts)


def _reparametrised(graph: fx.Graph) -> list[fx.Node]:
    """Nodes computed from parameters alone, through a mixing operator, that a reader uses."""
    fixed = _computed(graph)
    return [node for node, mixed in fixed.items() if mixed and _is_read_as_weight(node, fixed)]


def _computed(graph: fx.Graph) -> dict[fx.Node, bool]:
    """Nodes computed from parameters alone, and whether a mixing operator lies behind each."""
    fixed: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            fixed[node] = False
        elif node.op == "call_function" and node.all_input_nodes:
            inputs = node.all_input_nodes
            if all(source in fixed for source in inputs):
                fixed[node] = _mixes(node) or any(fixed[source] for source in inputs)
    return fixed


def _drop_unread(graph: fx.Graph) -> None:
    """Erase weights that are computed and not used: a parametrized LSTM computes each twice."""
    fixed = _computed(graph)
    for node in reversed(list(graph.nodes)):
        if node in fixed and not node.users and not _writes(node):
            sources = node.all_input_nodes
            graph.erase_node(node)
            for source in sources:
                if source.op == "get_attr" and not source.users:
                    graph.erase_node(source)


def _writes(node: fx.Node) -> bool:
    """Whether a node may do more than give a value."""
    target = node.target
    return not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable


def _mixes(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    found = rule_for(node.target)
    return found is None or found in _MIXING


def _is_read_as_weight(node: fx.Node, fixed: dict[fx.Node, bool]) -> bool:
    return any(
        user not in fixed
        and rule_for(user.target) in _READERS
        and (
            node in cell_parameters(user)
            or any(user.args[i] is node for i in _WEIGHT_OPERANDS if i < len(user.args))
        )
        for user in node.users
    )


def _replace(module: CapturedModule, node: fx.Node) -> fx.Node:
    """Put the value of `node` in its place as a parameter; drop what only it needed (in place)."""
    value = _evaluate(module, node)
    sources = [n for n in _ancestors(node) if n.op == "get_attr"]
    trainable = any(
        getattr(attribute(module, str(n.target)), "requires_grad", False) for n in sources
    )
    name = _free_name(module, node, sources, value.shape)
    parent, _, leaf = name.rpartition(".")
    with module.graph.inserting_before(node):
        new = module.graph.create_node("get_attr", name)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    for dead in [node, *_ancestors(node)]:
        if not dead.users:
            if dead.op == "get_attr" and str(dead.target) != name:
                _delete(module, str(dead.target))
            module.graph.erase_node(dead)
    owner = module.get_submodule(parent)
    if leaf in owner._parameters:
        del owner._parameters[leaf]
    owner.register_parameter(leaf, nn.Parameter(value, requires_grad=trainable))
    return new


def _ancestors(node: fx.Node) -> list[fx.Node]:
    """Everything `node` is computed from, nearest first, so that it can be erased in order."""
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    seen: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += current.all_input_nodes
    return sorted(seen, key=lambda n: -order[n])


def _evaluate(module: CapturedModule, node: fx.Node) -> torch.Tensor:
    """Value of a node that depends on parameters only."""
    values: dict[fx.Node, Argument] = {}
    for current in [*reversed(_ancestors(node)), node]:
        if current.op == "get_attr":
            values[current] = cast(Argument, attribute(module, str(current.target)))
            continue
        if not callable(current.target):
            raise RuntimeError(f"{current.name} cannot be called")
        args, kwargs = _filled(current, values)
        with torch.no_grad():
            values[current] = current.target(*args, **kwargs)
    result = values[node]
    if not isinstance(result, torch.Tensor):
        raise RuntimeError(f"{node.name} is not a tensor")
    return result.detach().clone()


def _filled(
    node: fx.Node, values: dict[fx.Node, Argument]
) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
    args = fx.node.map_arg(node.args, lambda n: values[n])
    return args, fx.node.map_arg(node.kwargs, lambda n: values[n])


def _free_name(
    module: CapturedModule, node: fx.Node, sources: list[fx.Node], shape: torch.Size
) -> str:
    """The name the weight has in the user's model, if it is free; else one beside it.

    A table that a weight only goes into (positions through a linear layer) is not that weight.
    """
    first = str(sources[-1].target)
    if ".parametrizations." in first or first.startswith("parametrizations."):
        path, _, rest = first.rpartition("parametrizations.")
        name = path + rest.split(".")[0]
    else:
        name = f"{first.rpartition('.')[0]}.weight".removeprefix(".")
    taken = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    # The raw weight may keep its name only while nobody else reads it.
    others = [
        n
        for n in module.graph.nodes
        if n.op == "get_attr" and str(n.target) == name and set(n.users) - {node}
    ]
    still_used = any(not _only_feeds(n, node) for n in others)
    still_used |= name in taken and taken[name].shape != shape
    while name in taken and (still_used or name not in {str(s.target) for s in sources}):
        name, still_used = f"{name}_effective", False
    return name


def _only_feeds(source: fx.Node, goal: fx.Node) -> bool:
    """Whether every path from `source` runs into `goal`."""
    reach = set(_ancestors(goal)) | {goal}
    waiting, seen = [source], set()
    while waiting:
        current = waiting.pop()
        if current is goal or current in seen:
            continue
        seen.add(current)
        if current not in reach or not current.users:
            return False
        waiting += list(current.users)
    return True


def _delete(module: nn.Module, target: str) -> None:
    parent, _, leaf = target.rpartition(".")
    owner = module.get_submodule(parent)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
