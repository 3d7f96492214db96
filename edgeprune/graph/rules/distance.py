"""How far two tensors are apart along an axis, and the angle between them."""

from __future__ import annotations

import torch

from edgeprune.graph.contraction import Equation, contract
from edgeprune.graph.labels import Value, varying
from edgeprune.graph.registry import rule
from edgeprune.graph.rules.reduction import reduced
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

# Letters of leading dims, outermost first; i, j, k are the last ones.
_LEADING = "abcdefgh"


@rule(aten.cosine_similarity.default)
def cosine_similarity(t: Trace, one: Value, two: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    """A product and two norms over `dim`: what is removed of both adds nothing to any of them.

    one, two (2, 8), dim 1 -> (2,): position 3 of both is one unit. Labels that also vary elsewhere
    (heads x head dim) are tied along `dim`.
    """
    met = t.meet(one, two)
    axis = dim % len(met.shape)
    passing = []
    for layer in met.layers:
        if varying(layer) == (axis,):
            t.read(0, layer)
            t.read(1, layer)
        else:
            t.tie(layer, (axis,), "summed over this axis")
            passing.append(layer)
    return t.settle(reduced(met, passing, (axis,), keep=False))


@rule(aten.pairwise_distance.default)
def pairwise_distance(
    t: Trace,
    one: Value,
    two: Value,
    order: float = 2.0,
    eps: float = 1e-6,
    keepdim: bool = False,
) -> Value:
    """As one operator it adds eps at removed positions too and pins; as difference, sum and norm
    it is exact.

    one, two (2, 8) -> (2,): position 3 of both is one unit.
    """
    met = t.meet(one, two)
    axis = len(met.shape) - 1
    passing = []
    for layer in met.layers:
        if varying(layer) == (axis,):
            t.in_steps(layer, "a distance is taken over this axis")
        else:
            t.tie(layer, (axis,), "summed over this axis")
            passing.append(layer)
    return t.settle(reduced(met, passing, (axis,), keepdim))


@rule(aten.cdist.default, aten._cdist_forward.default)
def cdist(t: Trace, one: Value, two: Value, *args: object) -> Value:
    """A contraction as in matmul, of which both operands are heard: 0 - x is no 0.

    one (2, 5, 8), two (2, 6, 8) -> (2, 5, 6): position 3 of both last dims is one unit.
    """
    count = max(len(one.shape), len(two.shape)) - 2
    lead = _LEADING[:count]
    left = lead[count - (len(one.shape) - 2) :] + "ik"
    right = lead[count - (len(two.shape) - 2) :] + "jk"
    before = len(t.edges)
    result = contract(t, one, two, Equation(left, right, lead + "ij"), 0)
    for edge in t.edges[before:]:
        t.read(1, edge.layer.reshape((1,) * (len(two.shape) - 1) + (-1,)))
    return result
