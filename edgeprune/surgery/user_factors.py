"""Factors that the pruned graph has and the user's class has no place for, moved into weights.

The graph keeps what the dense model computed: a mean divides by the dense count, attention scales
by the root of the dense head dim. Code that takes both from its sizes computes another number, a
known factor away. What is proportional carries it to the next weight: RMSNorm over K of N kept,

    w x / sqrt(sum/N + eps)  =  (w sqrt(N/K)) x / sqrt(sum/K + eps N/K)

so weight and eps take it, and the class computes what the graph does.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn
from torch.fx.node import Argument

from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.observe import Facts, TensorFact
from edgeprune.graph.operators import CONVOLUTIONS
from edgeprune.graph.provenance import module_path

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
_POWERS = {aten.rsqrt: -0.5, aten.sqrt: 0.5, aten.reciprocal: -1.0}


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight w that becomes factor * (w + shift) - shift."""

    name: str
    factor: float
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Constant:
    """A number that a module keeps: `before` in the class, `after` with its factor."""

    module: str
    before: float | None
    after: float


@dataclass(frozen=True, slots=True)
class Move:
    """One factor on its way: into weights, and into a constant that is added on the way.

    `nodes` are those whose values are the factor away in the class.
    """

    weights: tuple[Weight, ...]
    constant: Constant | None = None
    nodes: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class Moved:
    """What took factors: (module, attribute, before, after) of constants, names of weights.

    `nodes`: those of the graph whose values the class has a factor away.
    """

    constants: list[tuple[str, str, float | None, float]] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)


def move_factors(
    model: nn.Module, graph: CapturedModule, dense: CapturedModule, facts: Facts
) -> Moved:
    """Give the factors of the shrunk `graph` to weights and constants of `model` (in place).

    `model` has the tensors of `graph` by name; `dense` is the graph before surgery, `facts` are
    those of `graph`. A factor that finds no place stays out: the outputs will tell.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    moved = Moved()
    for move in _moves(graph, dense, facts):
        names = [weight.name for weight in move.weights]
        places = [] if move.constant is None else _floats(model, move.constant)
        if set(names) & set(moved.weights) or not set(names) <= set(tensors):
            continue
        if move.constant is not None and not places:
            continue
        for weight in move.weights:
            tensor = tensors[weight.name]
            tensor.data = (tensor.data + weight.shift) * weight.factor - weight.shift
        moved.weights += dict.fromkeys(names)
        moved.nodes |= move.nodes
        for module, attribute_name in places:
            constant = move.constant
            if constant is not None:
                before = getattr(module, attribute_name)
                setattr(module, attribute_name, constant.after)
                moved.constants.append((constant.module, attribute_name, before, constant.after))
    return moved


def _floats(model: nn.Module, constant: Constant) -> list[tuple[nn.Module, str]]:
    """Attributes of that value; `eps` of a norm of torch's that was given none."""
    module = model.get_submodule(constant.module)
    if isinstance(module, nn.RMSNorm):
        return [(module, "eps")]
    return [
        (module, name)
        for name, own in vars(module).items()
        if isinstance(own, float) and own == constant.before
    ]


def _moves(graph: CapturedModule, dense: CapturedModule, facts: Facts) -> Iterator[Move]:
    reads = _Reads(graph)
    before = {node.name: node for node in dense.graph.nodes}
    for node in graph.graph.nodes:
        found, reads.passed = None, set()
        if node.target is aten.mul.Scalar and node.meta.get("scales"):
            source = node.args[0]
            if _packet(source) is aten.mean:
                found = _mean(node, reads)
            elif _packet(source) is aten.rms_norm:
                found = _norm(node, before.get(source.name), reads)
        elif node.target is aten.scaled_dot_product_attention.default:
            found = _attention(node, before.get(node.name), facts, reads)
        if found is not None:
            yield replace(found, nodes=frozenset(reads.passed))


def _mean(node: fx.Node, reads: _Reads) -> Move | None:
    """mean * s + eps -> s (mean + eps / s): the sum is s times what the class has."""
    share = float(node.args[1])  # type: ignore[arg-type]
    total, constant = node, None
    (user,) = node.users if len(node.users) == 1 else (None,)
    if user is not None and _packet(user) is aten.add and isinstance(user.args[1], float):
        eps = user.args[1]
        total, constant = user, Constant(module_path(user), eps, eps / share)
    weights = reads.ahead(total, share)
    return None if weights is None else Move(weights, constant)


def _norm(node: fx.Node, dense: fx.Node | None, reads: _Reads) -> Move | None:
    """rms_norm(x, [4], w, eps * 2) * sqrt(2): the class gets this eps, and w the root."""
    norm = node.args[0]
    if dense is None or not isinstance(norm, fx.Node) or len(norm.args) < 4:
        return None
    weights = reads.weight(norm.args[2], float(node.args[1]))  # type: ignore[arg-type]
    own = dense.args[3] if len(dense.args) > 3 else None
    constant = Constant(module_path(norm), own, float(norm.args[3]))  # type: ignore[arg-type]
    return None if weights is None else Move(weights, constant)


def _attention(node: fx.Node, dense: fx.Node | None, facts: Facts, reads: _Reads) -> Move | None:
    """Attention whose scale the class leaves to torch: queries take what it is short of."""
    scale, query = node.kwargs.get("scale"), node.args[0]
    if dense is None or dense.kwargs.get("scale") is not None or not isinstance(scale, float):
        return None
    fact = facts[query.name] if isinstance(query, fx.Node) else None
    if not isinstance(fact, TensorFact) or not isinstance(query, fx.Node):
        return None
    weights = reads.behind(query, node, scale * fact.shape[-1] ** 0.5)
    return None if weights is None else Move(weights)


class _Reads:
    """Where a factor of a value of the graph can go."""

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
        """A parameter, moved or plus a number, that nothing else reads."""
        if not isinstance(value, fx.Node) or len(value.users) != 1:
            return None
        self.passed.add(value.name)
        if value.op == "get_attr":
            tensor = self._tensor(value)
            alone = isinstance(tensor, nn.Parameter) and self.count[id(tensor)] == 1
            return (Weight(str(value.target), factor, shift),) if alone else None
        if _packet(value) is aten.add and isinstance(value.args[1], int | float):
            return self.weight(value.args[0], factor, shift + value.args[1])
        return self.weight(value.args[0], factor, shift) if _packet(value) in _MOVES else None

    def ahead(self, value: fx.Node, factor: float) -> tuple[Weight, ...] | None:
        """Weights that every reader of `value` hands its factor on to."""
        self.passed.add(value.name)
        found = [self._reader(user, value, factor) for user in value.users]
        known = [weights for weights in found if weights is not None]
        return tuple(itertools.chain(*known)) if found and len(known) == len(found) else None

    def _reader(self, user: fx.Node, value: fx.Node, factor: float) -> tuple[Weight, ...] | None:
        packet = _packet(user)
        if user.all_input_nodes.count(value) != 1 or [*user.args].count(value) != 1:
            return None
        position = [*user.args].index(value)
        if packet in _POWERS:
            return self.ahead(user, factor ** _POWERS[packet])
        if packet in _MOVES and position == 0:
            return self.ahead(user, factor)
        if packet is aten.div:
            return self.ahead(user, factor if position == 0 else 1.0 / factor)
        if packet is aten.mul:
            here = self.weight(user.args[1 - position], factor)
            return self.ahead(user, factor) if here is None else here
        if packet is aten.addcmul and position > 0:
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
        packet = _packet(value)
        if value.target in _AFFINE:
            first, *rest = [value.args[i] for i in _AFFINE[value.target] if i < len(value.args)]
            parts = [first, *(part for part in rest if part is not None)]
            weights = [self.weight(part, factor) for part in parts]
        elif packet in _SUMS:
            operands: object = value.args[0] if packet in _LISTS else value.args[:2]
            members = operands if isinstance(operands, list | tuple) else []
            weights = [self._sources(part, factor, path) for part in members]
        elif packet in _MOVES:
            weights = [self._sources(value.args[0], factor, path)]
        elif packet is aten.mul:
            weights = [self._one_of(value, factor, path)]
        else:
            weights = [None]
        known = [part for part in weights if part is not None]
        return tuple(itertools.chain(*known)) if len(known) == len(weights) else None

    def _one_of(
        self, product: fx.Node, factor: float, path: set[fx.Node]
    ) -> tuple[Weight, ...] | None:
        for side in product.args if len(product.all_input_nodes) == 2 else ():
            tried = {*path}
            found = self.weight(side, factor) or self._sources(side, factor, tried)
            if found is not None:
                path |= tried
                return found
        return None


def _packet(node: object) -> object:
    """The operator of a node, whatever its overload."""
    target = getattr(node, "target", None)
    return getattr(target, "overloadpacket", target)
