"""Factors that the pruned graph has and the user's class has no place for, moved into weights.

The graph keeps what the dense model computed: a mean divides by the dense count, attention scales
by the root of the dense head dim. Code that takes both from its sizes computes another number, a
known factor away. What is proportional carries it to the next weight: RMSNorm over K of N kept,

    w x / sqrt(sum/N + eps)  =  (w sqrt(N/K)) x / sqrt(sum/K + eps N/K)

so weight and eps take it, and the class computes what the graph does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from edgeprune.graph.module import CapturedModule
from edgeprune.graph.observe import Facts, TensorFact
from edgeprune.surgery.routes import Routes, Weight, packet
from edgeprune.surgery.tagged import Place
from edgeprune.surgery.user_constants import put

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Constant:
    """A number that `node` reads: `after` with its factor."""

    node: str
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
    """What took factors: (place, before, after) of constants, names of weights.

    `nodes`: those of the graph whose values the class has a factor away. `coarse`: a dtype in which
    a weight cannot take its factor exactly enough, if there is one.
    """

    constants: list[tuple[Place, float | None, float]] = field(default_factory=list)
    weights: dict[str, None] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    coarse: torch.dtype | None = None


def factors(graph: CapturedModule, dense: CapturedModule, facts: Facts) -> tuple[Move, ...]:
    """What moves of the shrunk `graph`; `dense` is it before surgery, `facts` are of `graph`."""
    return tuple(_moves(graph, dense, facts))


def move_factors(model: nn.Module, moves: Sequence[Move], owner: Mapping[str, Place]) -> Moved:
    """Give factors to weights and constants of `model`, which has the graph's tensors (in place).

    `owner` is the attribute that a node reads as its constant; it takes a factor where all of its
    readers want the same. A factor that finds no place stays out: the outputs will tell.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    moved, after = Moved(), dict[Place, float]()
    for move in _consistent(list(moves), owner):
        changed: dict[str, torch.Tensor] = {}
        for weight in move.weights:
            old = changed.get(weight.name, tensors[weight.name].data)
            exact = (old.double() + weight.shift) * weight.factor - weight.shift
            changed[weight.name] = new = exact.to(old.dtype)
            if new.dtype.itemsize < 4 and not torch.equal(new.double(), exact):
                moved.coarse = new.dtype
        for name, new in changed.items():
            tensors[name].data = new
            moved.weights[name] = None
        moved.nodes |= move.nodes
        if move.constant is not None:
            after[owner[move.constant.node]] = move.constant.after
    before = put(model, after)
    moved.constants = [(place, before[place], value) for place, value in after.items()]
    return moved


def _consistent(moves: list[Move], owner: Mapping[str, Place]) -> list[Move]:
    """Those without a constant, and those whose constant all readers want to be the same."""
    wanted: dict[Place, set[float]] = defaultdict(set)
    for move in moves:
        if move.constant is not None and move.constant.node in owner:
            wanted[owner[move.constant.node]].add(move.constant.after)
    return [
        move
        for move in moves
        if move.constant is None
        or (move.constant.node in owner and len(wanted[owner[move.constant.node]]) == 1)
    ]


def _moves(graph: CapturedModule, dense: CapturedModule, facts: Facts) -> Iterator[Move]:
    routes = Routes(graph)
    before = {node.name: node for node in dense.graph.nodes}
    for node in graph.graph.nodes:
        found, routes.passed = None, set()
        if node.target is aten.mul.Scalar and node.meta.get("scales"):
            if packet(node.args[0]) is aten.mean:
                found = _mean(node, routes)
            elif packet(node.args[0]) is aten.rms_norm:
                found = _norm(node, routes)
        elif node.target is aten.scaled_dot_product_attention.default:
            found = _attention(node, before.get(node.name), facts, routes)
        if found is not None:
            yield replace(found, nodes=frozenset(routes.passed))


def _mean(node: fx.Node, routes: Routes) -> Move | None:
    """mean * s + eps -> s (mean + eps / s): the sum is s times what the class has."""
    share = float(node.args[1])  # type: ignore[arg-type]
    total, constant = node, None
    (user,) = node.users if len(node.users) == 1 else (None,)
    if user is not None and packet(user) is aten.add and isinstance(user.args[1], int | float):
        total, eps = user, float(user.args[1])
        constant = Constant(user.name, eps / share) if eps else None
    weights = routes.ahead(total, share)
    return None if weights is None else Move(weights, constant)


def _norm(node: fx.Node, routes: Routes) -> Move | None:
    """rms_norm(x, [4], w, eps * 2) * sqrt(2): the class gets this eps, and w the root."""
    norm, factor = node.args[0], float(node.args[1])  # type: ignore[arg-type]
    if not isinstance(norm, fx.Node) or len(norm.args) < 4:
        return None
    weight = norm.args[2]
    weights = routes.ahead(node, factor) if weight is None else routes.weight(weight, factor)
    constant = Constant(norm.name, float(norm.args[3]))  # type: ignore[arg-type]
    return None if weights is None else Move(weights, constant)


def _attention(node: fx.Node, dense: fx.Node | None, facts: Facts, routes: Routes) -> Move | None:
    """Attention whose scale the class leaves to torch: queries take what it is short of."""
    scale, query = node.kwargs.get("scale"), node.args[0]
    if dense is None or dense.kwargs.get("scale") is not None or not isinstance(scale, float):
        return None
    fact = facts[query.name] if isinstance(query, fx.Node) else None
    if not isinstance(fact, TensorFact) or not isinstance(query, fx.Node):
        return None
    weights = routes.behind(query, node, scale * fact.shape[-1] ** 0.5)
    return None if weights is None else Move(weights)
