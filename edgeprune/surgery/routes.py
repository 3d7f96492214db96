"""Where a factor can go: along operators that are proportional, into weights read nowhere else."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.node import Argument

from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.operators import CONVOLUTIONS

aten = torch.ops.aten

# What is proportional to its first operand: it moves, copies or turns the sign.
_MOVES = {
    *(aten.to, aten.view, aten.reshape, aten.transpose, aten.permute, aten.contiguous),
    *(aten.unsqueeze, aten.squeeze, aten.expand, aten.flatten, aten.unflatten, aten.clone),
    *(aten.slice, aten.select, aten.alias, aten.detach, aten.neg, aten.dropout, aten.repeat),
    *(aten.chunk, aten.split, aten.split_with_sizes, aten.unbind, operator.getitem),
}
_LISTS = {aten.cat, aten.stack}
_SUMS = {aten.add, aten.sub, *_LISTS}
_MATRICES = (aten.linear.default, *CONVOLUTIONS)
# Where an operator has what it multiplies by and adds at last.
_AFFINE = {
    aten.linear.default: (1, 2),
    **dict.fromkeys(CONVOLUTIONS, (1, 2)),
    aten.batch_norm.default: (1, 2),
    aten.instance_norm.default: (1, 2),
    aten.layer_norm.default: (2, 3),
    aten.group_norm.default: (2, 3),
    aten.rms_norm.default: (2,),
}
# Of a factor that is positive.
_PROPORTIONAL = {aten.relu, aten.leaky_relu, aten.abs, aten.mean, aten.sum}
_POWERS = {aten.rsqrt: -0.5, aten.sqrt: 0.5, aten.reciprocal: -1.0}


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight w that becomes factor * (w + shift) - shift."""

    name: str
    factor: float
    shift: float = 0.0


class Routes:
    """Ways of a factor of a value of the graph into weights; `passed` names the nodes on them."""

    def __init__(self, graph: CapturedModule) -> None:
        self.graph = graph
        self.passed: set[str] = set()
        self.count = Counter(
            id(self._tensor(node))
            for node in graph.graph.nodes
            for _ in node.users
            if node.op == "get_attr"
        )

    def _tensor(self, node: fx.Node) -> object:
        return attribute(self.graph, str(node.target))

    def weight(self, value: object, factor: float, shift: float = 0.0) -> tuple[Weight, ...] | None:
        """A parameter that nothing else reads: as it is, moved, plus a number, or in a product."""
        if not isinstance(value, fx.Node) or len(value.users) != 1:
            return None
        self.passed.add(value.name)
        if value.op == "get_attr":
            tensor = self._tensor(value)
            alone = isinstance(tensor, nn.Parameter) and self.count[id(tensor)] == 1
            return (Weight(str(value.target), factor, shift),) if alone else None
        kind = packet(value)
        if kind is aten.add and not value.kwargs and isinstance(value.args[1], int | float):
            return self.weight(value.args[0], factor, shift + value.args[1])
        if kind is aten.mul and not shift:
            found = (self.weight(side, factor) for side in value.args)
            return next((weights for weights in found if weights is not None), None)
        return self.weight(value.args[0], factor, shift) if kind in _MOVES else None

    def ahead(self, value: fx.Node, factor: float) -> tuple[Weight, ...] | None:
        """Weights that every reader of `value` hands its factor on to."""
        self.passed.add(value.name)
        found = [self._reader(user, value, factor) for user in value.users]
        known = [weights for weights in found if weights is not None]
        return tuple(itertools.chain(*known)) if found and len(known) == len(found) else None

    def _reader(self, user: fx.Node, value: fx.Node, factor: float) -> tuple[Weight, ...] | None:
        kind = packet(user)
        if user.all_input_nodes.count(value) != 1 or [*user.args].count(value) != 1:
            return None
        position = [*user.args].index(value)
        if kind in _POWERS:
            return self.ahead(user, factor ** _POWERS[kind])
        if kind is aten.pow and isinstance(user.args[1], int | float):
            return self.ahead(user, factor ** user.args[1])
        if kind in _PROPORTIONAL and position == 0:
            return self.ahead(user, factor)
        if kind in _MOVES and position == 0:
            return self.ahead(user, factor)
        if kind is aten.div:
            return self.ahead(user, factor if position == 0 else 1.0 / factor)
        if kind is aten.mul:
            here = self.weight(user.args[1 - position], factor)
            return self.ahead(user, factor) if here is None else here
        if kind is aten.addcmul and position > 0:
            return self.weight(user.args[3 - position], factor)
        if user.target in _MATRICES and position == 0:
            return self.weight(user.args[1], factor)
        return None

    def behind(self, value: fx.Node, reader: fx.Node, factor: float) -> tuple[Weight, ...] | None:
        """Weights that make `value`, which only `reader` reads, `factor` times as large."""
        path: set[fx.Node] = {reader}
        found = self._sources(value, factor, path)
        ends = {*path} - {reader}
        self.passed |= {node.name for node in ends}
        is_closed = [*reader.args].count(value) == 1 and all(set(n.users) <= path for n in ends)
        return tuple(dict.fromkeys(found)) if found and is_closed else None

    def _sources(
        self, value: Argument, factor: float, path: set[fx.Node]
    ) -> tuple[Weight, ...] | None:
        if not isinstance(value, fx.Node):
            return None
        path.add(value)
        if value.op == "get_attr":
            return self.weight(value, factor)
        kind = packet(value)
        if value.target in _AFFINE:
            first, *rest = [value.args[i] for i in _AFFINE[value.target] if i < len(value.args)]
            parts = [first, *(part for part in rest if part is not None)]
            weights = [self.weight(part, factor) for part in parts]
        elif kind in _SUMS:
            operands: object = value.args[0] if kind in _LISTS else value.args[:2]
            members = operands if isinstance(operands, list | tuple) else []
            weights = [self._sources(part, factor, path) for part in members]
        elif kind in _MOVES:
            weights = [self._sources(value.args[0], factor, path)]
        elif kind is aten.mul:
            weights = [self._one_of(value, factor, path)]
        else:
            weights = [None]
        known = [part for part in weights if part is not None]
        return tuple(itertools.chain(*known)) if len(known) == len(weights) else None

    def _one_of(
        self, product: fx.Node, factor: float, path: set[fx.Node]
    ) -> tuple[Weight, ...] | None:
        if product.args[0] is product.args[1]:
            return None
        for side in product.args:
            tried = {*path}
            found = self.weight(side, factor) or self._sources(side, factor, tried)
            if found is not None:
                path |= tried
                return found
        return None


def packet(node: object) -> object:
    """The operator of a node, whatever its overload."""
    target = getattr(node, "target", None)
    return getattr(target, "overloadpacket", target)
