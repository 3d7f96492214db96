"""Linear layers and matrix products."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch

from edgeprune.graph.contraction import Equation, contract
from edgeprune.graph.labels import Value, varying
from edgeprune.graph.registry import foreign_rule, rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

# Letters of leading dims, outermost first; i, j, k are the matrix dims.
_LEADING = "abcdefgh"


@rule(aten.linear.default)
def linear(t: Trace, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x's last dim and the weight's dim 1 become units; the result carries the weight's dim 0.

    x (2, 5, 8), weight (16, 8), bias (16,) -> (2, 5, 16): position 3 of the result, weight[3]
    and bias[3] are one unit; x[..., 3] and weight[:, 3] another.
    """
    lead = _LEADING[: len(x.shape) - 1]
    out = contract(t, x, weight, Equation(lead + "k", "jk", lead + "j"), 0)
    return out if bias is None else t.meet(out, bias)


@rule(aten.matmul.default, aten.bmm.default, aten.mm.default, aten.mv.default, aten.dot.default)
def matmul(t: Trace, left: Value, right: Value, operand: int = 0) -> Value:
    """NumPy's matmul: last dim of left against second last of right, leading dims broadcast.

    left (2, 4, 5, 8), right (2, 4, 8, 5) -> (2, 4, 5, 5): labels along (head, 8) become heads.
    """
    if len(left.shape) == 1 and len(right.shape) == 1:
        return contract(t, left, right, Equation("k", "k", ""), operand)
    if len(left.shape) == 1:
        lead = _LEADING[: len(right.shape) - 2]
        return contract(t, left, right, Equation("k", lead + "kj", lead + "j"), operand)
    if len(right.shape) == 1:
        lead = _LEADING[: len(left.shape) - 2]
        return contract(t, left, right, Equation(lead + "ik", "k", lead + "i"), operand)
    count = max(len(left.shape), len(right.shape)) - 2
    lead = _LEADING[:count]
    one = lead[count - (len(left.shape) - 2) :]
    two = lead[count - (len(right.shape) - 2) :]
    return contract(t, left, right, Equation(one + "ik", two + "kj", lead + "ij"), operand)


@foreign_rule("transformers::grouped_mm_fallback")
def grouped(t: Trace, x: Value, weight: Value, ends: Value) -> Value:
    """Rows sorted by expert, each group of them through the matrix of its own; experts stay.

    x (6, 8), weight (3, 8, 5), ends (3,): rows 0-1, 2-2 and 3-5 -> (6, 5). x[:, 3] and
    weight[:, 3] are one unit, and the result carries the weight's dim 2.
    """
    t.pin(ends, "counts the rows of each expert")
    shared = Value(weight.shape[1:], tuple(_of_one(t, weight, 0)))
    rows = Value(x.shape, tuple(layer.unsqueeze(0) for layer in _of_one(t, x, 0)))
    return contract(t, rows, shared, Equation("ik", "kj", "ij"), 0)


def _of_one(t: Trace, value: Value, dim: int) -> list[torch.Tensor]:
    """Layers of one slice along `dim`, whose positions are numbered."""
    layers = []
    for layer in value.layers:
        if dim in varying(layer):
            t.tie(layer, tuple(d for d in varying(layer) if d != dim), "one matrix an expert")
            t.labels.pin(layer, t.cause("experts are read by number"))
        else:
            layers.append(layer.select(dim, 0))
    return layers


@rule(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def addmm(t: Trace, bias: Value, left: Value, right: Value, **kwargs: object) -> Value:
    """bias + left @ right: the product, then it meets the bias.

    bias (6,), left (2, 8), right (8, 6): bias[3] and right[:, 3] are one unit.
    """
    return t.meet(matmul(t, left, right, operand=1), bias)


@rule(aten.outer.default, aten.ger.default)
def outer(t: Trace, left: Value, right: Value) -> Value:
    """Nothing is summed: left (3,), right (4,) -> (3, 4) with left's labels and right's."""
    return contract(t, left, right, Equation("i", "j", "ij"), 0)


@rule(aten.tensordot.default)
def tensordot(
    t: Trace, left: Value, right: Value, dims_left: Sequence[int], dims_right: Sequence[int]
) -> Value:
    """Several pairs of dims are summed over: x (2, 5, 8) with w (8, 6) over ([2], [0]).

    x's 8 positions are joined with w's dim 0, the result (2, 5, 6) carries w's dim 1.
    """
    count = len(left.shape)
    letters = string.ascii_letters
    one = list(letters[:count])
    two = list(letters[count : count + len(right.shape)])
    summed = set()
    for mine, yours in zip(dims_left, dims_right, strict=True):
        two[yours % len(two)] = one[mine % count]
        summed.add(one[mine % count])
    result = "".join(c for c in [*one, *two] if c not in summed)
    return contract(t, left, right, Equation("".join(one), "".join(two), result), 0)


@rule(aten.bilinear.default)
def bilinear(t: Trace, one: Value, two: Value, weight: Value, bias: Value | None = None) -> Value:
    """x1 W x2: weight (6, 3, 4) reads x1's width 3 with dim 1, x2's 4 with dim 2, and makes 6."""
    lead = _LEADING[: len(one.shape) - 1]
    half = contract(t, one, weight, Equation(lead + "k", "jkl", lead + "jl"), 0)
    out = contract(t, two, half, Equation(lead + "l", lead + "jl", lead + "j"), 1)
    return out if bias is None else t.meet(out, bias)
