"""Operators that work element by element: labels that meet are joined."""

from __future__ import annotations

import torch

from edgeprune.graph.labels import Value
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten


# Element by element, although torch does not tag them so: other names of tagged ones, mostly.
_UNTAGGED = (
    aten.__and__.Scalar,
    aten.__and__.Tensor,
    aten.__or__.Scalar,
    aten.__or__.Tensor,
    aten.__xor__.Scalar,
    aten.__xor__.Tensor,
    aten.absolute.default,
    aten.arccos.default,
    aten.arccosh.default,
    aten.arcsin.default,
    aten.arcsinh.default,
    aten.arctan.default,
    aten.arctan2.default,
    aten.arctanh.default,
    aten.complex.default,
    aten.conj.default,
    aten.divide.Scalar,
    aten.divide.Scalar_mode,
    aten.divide.Tensor,
    aten.divide.Tensor_mode,
    aten.fix.default,
    aten.floor_divide.Scalar,
    aten.floor_divide.default,
    aten.greater.Scalar,
    aten.greater.Tensor,
    aten.greater_equal.Scalar,
    aten.greater_equal.Tensor,
    aten.imag.default,
    aten.less.Scalar,
    aten.less.Tensor,
    aten.less_equal.Scalar,
    aten.less_equal.Tensor,
    aten.masked_fill.Tensor,
    aten.multiply.Scalar,
    aten.multiply.Tensor,
    aten.negative.default,
    aten.not_equal.Scalar,
    aten.not_equal.Tensor,
    aten.polar.default,
    aten.real.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
    aten.rsub.Tensor,
    aten.special_erf.default,
    aten.special_exp2.default,
    aten.special_expit.default,
    aten.special_log1p.default,
    aten.subtract.Scalar,
    aten.subtract.Tensor,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
)


@rule(
    *_UNTAGGED,
    aten.add.Tensor,
    aten.copy_.default,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
    aten.zero_.default,
    aten.hardswish.default,
    aten.rrelu.default,
    aten.log_sigmoid.default,
)
def pointwise(t: Trace, *args: object, **kwargs: object) -> Value:
    """Every tensor argument meets every other; also the rule of all ops torch tags pointwise.

    x (2, 8, 5, 5) + y (2, 8, 5, 5): x's channel 3 and y's channel 3 become one unit. An in-place
    op needs nothing more: `y[:, :4].add_(z)` joins the labels of the slice, which *are* y's
    labels 0-3, with z's; whoever reads y later sees the joined unit.
    """
    return t.meet(*[arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value)])


@rule(aten.prelu.default)
def prelu(t: Trace, x: Value, weight: Value) -> Value:
    """The slope is one number, or one a channel: then it lies along dim 1.

    x (2, 8, 5, 5), weight (8,): x's channel 3 and weight[3] are one unit.
    """
    if weight.shape == (1,) or len(x.shape) < 2:
        return t.meet(x, weight)
    tail = (1,) * (len(x.shape) - 2)
    layers = tuple(layer.reshape(-1, *tail) for layer in weight.layers)
    return t.meet(x, Value((weight.shape[0], *tail), layers))


@rule(
    aten.alias.default,
    aten.alpha_dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_alpha_dropout.default,
    aten.feature_dropout.default,
    aten.lift_fresh_copy.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
    aten._to_copy.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
)
def same_shape(t: Trace, x: Value, *args: object, **kwargs: object) -> Value:
    """The result has x's positions, whatever its values or dtype.

    zeros_like of x (2, 8) takes its size from x at run time: with 5 of 8 kept it is (2, 5).
    """
    return x
