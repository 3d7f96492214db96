"""Cost: parameters and multiply-accumulates of a captured model, for one sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from edgeprune.graph.capture import Captured
from edgeprune.graph.observe import Facts, TensorFact
from edgeprune.graph.operators import CELLS, CONVOLUTIONS, RECURRENT, TRANSPOSED, cell_parameters
from edgeprune.graph.rules.summation import terms_of

aten = torch.ops.aten

_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.linear.default)
_SUMS_OF_PRODUCTS = (aten.addmm.default, aten.baddbmm.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """`params`: trainable and frozen numbers, ties once. `macs`: multiply-accumulates a sample."""

    params: int
    macs: int


def cost(captured: Captured) -> Cost:
    """Parameters and MACs of convolutions, linear layers, recurrent cells, products, attention.

    Pointwise work, norms and pooling are not MACs and do not count.
    """
    params = sum(p.numel() for p in captured.module.parameters())
    return Cost(params=params, macs=macs(captured, captured.facts))


def macs(captured: Captured, facts: Facts) -> int:
    """MACs a sample of the captured graph if its values had the shapes in `facts`."""
    total = sum(macs_of(node, facts) for node in captured.module.graph.nodes)
    return round(total / (captured.inputs.batch_size or 1))


def macs_of(node: fx.Node, facts: Facts) -> int:
    """MACs of one node for the whole batch of the example; 0 for what is no contraction."""
    if node.target in CONVOLUTIONS:
        # Every output element sums over one group's inputs and the kernel.
        return math.prod(_shape(node, facts)) * math.prod(_operand(node, 1, facts)[1:])
    if node.target in TRANSPOSED:
        return math.prod(_operand(node, 0, facts)) * math.prod(_operand(node, 1, facts)[1:])
    if node.target in _PRODUCTS:
        return math.prod(_shape(node, facts)) * _operand(node, 0, facts)[-1]
    if node.target in _SUMS_OF_PRODUCTS:
        return math.prod(_shape(node, facts)) * _operand(node, 1, facts)[-1]
    if node.target in RECURRENT or node.target in CELLS:
        # Every weight of a cell multiplies once a sample and time step.
        weights = [_shape(p, facts) for p in cell_parameters(node)]
        steps = math.prod(_operand(node, 0, facts)[:-1])
        return steps * sum(math.prod(shape) for shape in weights if len(shape) > 1)
    if node.target is aten.einsum.default:
        return _einsum_macs(node, facts)
    if node.target is aten.scaled_dot_product_attention.default:
        query, key, value = (_operand(node, i, facts) for i in range(3))
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


def _einsum_macs(node: fx.Node, facts: Facts) -> int:
    """The product of all letters' sizes; with more than two operands, pair by pair."""
    equation, operands = node.args[0], node.args[1]
    if not isinstance(equation, str) or not isinstance(operands, list | tuple):
        return 0
    shapes = [_shape(operand, facts) for operand in operands if isinstance(operand, fx.Node)]
    terms = terms_of(equation, tuple(map(len, shapes)))
    sizes: dict[str, int] = {}
    for names, shape in zip(terms.operands, shapes, strict=True):
        for letter, size in zip(names, shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    total, left = 0, set(terms.operands[0])
    for index, names in enumerate(terms.operands[1:], start=2):
        met = left | set(names)
        total += math.prod(sizes[letter] for letter in met)
        left = met & set(terms.result).union(*terms.operands[index:])
    return total


def _shape(node: fx.Node, facts: Facts) -> tuple[int, ...]:
    fact = facts[node.name]
    return fact.shape if isinstance(fact, TensorFact) else ()


def _operand(node: fx.Node, index: int, facts: Facts) -> tuple[int, ...]:
    argument = node.args[index]
    return _shape(argument, facts) if isinstance(argument, fx.Node) else ()
