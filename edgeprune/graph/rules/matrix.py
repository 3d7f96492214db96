"""Linear layers and matrix products."""

from __future__ import annotations

import torch

from edgeprune.graph.contraction import Equation, contract
from edgeprune.graph.labels import Value
from edgeprune.graph.registry import rule
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


@rule(aten.addmm.default, aten.baddbmm.default)
def addmm(t: Trace, bias: Value, left: Value, right: Value, **kwargs: object) -> Value:
    """bias + left @ right: the product, then it meets the bias.

    bias (6,), left (2, 8), right (8, 6): bias[3] and right[:, 3] are one unit.
    """
    return t.meet(matmul(t, left, right, operand=1), bias)
