"""Aliases: which values share storage, and whose storage is written in place.

Labels need no alias tracking: a position of a tensor has one label for life, and an in-place op
joins what it writes with what was there (`y[:, :4].add_(z)` joins z with y's positions 0-3). Only
surgery must know: it may not turn a view into a copy when somebody writes through it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx
from torch._ops import OpOverload


def shared_writes(graph: fx.Graph) -> frozenset[str]:
    """Names of all nodes that share storage with a value that is written in place.

    y = zeros(8); a = y[::2]; a.add_(1): y, a and the result of add_ are named.
    """
    root = storages(graph)
    roots = {root[into] for node in graph.nodes for into in written(node)}
    return frozenset(node.name for node in graph.nodes if root[node] in roots)


def storages(graph: fx.Graph) -> Mapping[fx.Node, fx.Node]:
    """For every node the first node that it may share storage with: itself if it shares none."""
    root: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while root.setdefault(node, node) is not node:
            node = root[node]
        return node

    for node in graph.nodes:
        for source in _sources(node):
            root[find(node)] = find(source)
    return {node: find(node) for node in graph.nodes}


def written(node: fx.Node) -> tuple[fx.Node, ...]:
    """The values that a node writes into, in place."""
    if not isinstance(node.target, OpOverload):
        return ()
    pairs = zip(node.target._schema.arguments, node.args, strict=False)
    return tuple(
        argument
        for schema, argument in pairs
        if isinstance(argument, fx.Node)
        and schema.alias_info is not None
        and schema.alias_info.is_write
    )


def _sources(node: fx.Node) -> list[fx.Node]:
    """Whose storage the result of a node may share, by the operator's schema."""
    if not isinstance(node.target, OpOverload):
        # getitem: a member of a split is a view of what was split.
        return node.all_input_nodes if node.op == "call_function" else []
    if all(returned.alias_info is None for returned in node.target._schema.returns):
        return []
    pairs = zip(node.target._schema.arguments, node.args, strict=False)
    return [a for schema, a in pairs if schema.alias_info is not None and isinstance(a, fx.Node)]
