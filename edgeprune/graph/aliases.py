"""Aliases: which values share storage, and whose storage is written in place.

Labels need no alias tracking: a position of a tensor has one label for life, and an in-place op
joins what it writes with what was there (`y[:, :4].add_(z)` joins z with y's positions 0-3). Only
surgery must know: it may not turn a view into a copy when somebody writes through it.
"""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload


def shared_writes(graph: fx.Graph) -> frozenset[str]:
    """Names of all nodes that share storage with a value that is written in place.

    y = zeros(8); a = y[::2]; a.add_(1): y, a and the result of add_ are named.
    """
    root: dict[str, str] = {}
    written: set[str] = set()

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for node in graph.nodes:
        if not isinstance(node.target, OpOverload):
            # getitem: a member of a split is a view of what was split.
            for source in node.all_input_nodes if node.op == "call_function" else ():
                root[find(node.name)] = find(source.name)
            continue
        returns = any(r.alias_info is not None for r in node.target._schema.returns)
        for schema, argument in zip(node.target._schema.arguments, node.args, strict=False):
            if schema.alias_info is None or not isinstance(argument, fx.Node):
                continue
            if returns:
                root[find(node.name)] = find(argument.name)
            if schema.alias_info.is_write:
                written.add(argument.name)
    roots = {find(name) for name in written}
    return frozenset(node.name for node in graph.nodes if find(node.name) in roots)
