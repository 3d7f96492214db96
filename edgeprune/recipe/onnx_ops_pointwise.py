"""ONNX operators that treat every element alike: activations, arithmetic, comparison."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F

from edgeprune.recipe.onnx_call import Call, Result, onnx_op, torch_dtype
from edgeprune.recipe.onnx_numbers import dtype_of

_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Asin": torch.asin,
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Sub": torch.sub,
}


@onnx_op(*_UNARY)
def unary(call: Call) -> Result:
    """One operand, the same shape."""
    return _UNARY[call.step.op](call.tensor(0))


@onnx_op(*_BINARY)
def binary(call: Call) -> Result:
    """Two operands, broadcast as NumPy does."""
    left, right = call.operand(0), call.operand(1)
    if not isinstance(left, torch.Tensor):
        if call.step.op in ("Add", "Mul"):
            left, right = right, left
        elif call.step.op != "Pow":  # a tensor must come first
            left = call.tensor(0)
    return _BINARY[call.step.op](left, right)


@onnx_op("Div")
def divide(call: Call) -> Result:
    """A quotient; of integers, towards zero."""
    left, right = call.tensor(0), cast("torch.Tensor", call.operand(1))  # or one number
    if left.is_floating_point():
        return torch.div(left, right)
    return torch.div(left, right, rounding_mode="trunc")


@onnx_op("Mod")
def remainder(call: Call) -> Result:
    """What a division leaves: with the divisor's sign, or with fmod the dividend's."""
    function = torch.fmod if call.integer("fmod", 0) else torch.remainder
    return function(call.tensor(0), call.operand(1))


_MANY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


@onnx_op("Max", "Min", "Sum", "Mean")
def many(call: Call) -> Result:
    """Any number of operands, broadcast."""
    tensors = [call.tensor(index) for index in range(len(call.values))]
    if call.step.op == "Mean":
        return functools.reduce(torch.add, tensors) / len(tensors)
    return functools.reduce(_MANY[call.step.op], tensors)


@onnx_op("Clip")
def clip(call: Call) -> Result:
    """Between two bounds, each of which may be left out; old opsets have them as attributes."""
    low = call.operand(1) if call.has(1) else call.step.attributes.get("min")
    high = call.operand(2) if call.has(2) else call.step.attributes.get("max")
    if low is None and high is None:
        return call.tensor(0)
    if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor):
        raise call.step.refused("bounds that are fixed numbers", "tensors")
    bounds = [value if isinstance(value, int | float) else None for value in (low, high)]
    return torch.clamp(call.tensor(0), bounds[0], bounds[1])


@onnx_op("HardSigmoid")
def hard_sigmoid(call: Call) -> Result:
    """max(0, min(1, alpha x + beta)): torch's own where alpha is 1/6 and beta 1/2."""
    alpha, beta = call.real("alpha", 0.2), call.real("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(call.tensor(0))
    return torch.clamp(call.tensor(0) * alpha + beta, 0.0, 1.0)


@onnx_op("LeakyRelu")
def leaky_relu(call: Call) -> Result:
    """x where positive, else x times alpha."""
    return F.leaky_relu(call.tensor(0), call.real("alpha", 0.01))


@onnx_op("Elu")
def elu(call: Call) -> Result:
    """x where positive, else alpha (exp x - 1)."""
    return F.elu(call.tensor(0), call.real("alpha", 1.0))


@onnx_op("Celu")
def celu(call: Call) -> Result:
    """x where positive, else alpha (exp(x / alpha) - 1)."""
    return F.celu(call.tensor(0), call.real("alpha", 1.0))


@onnx_op("Selu")
def selu(call: Call) -> Result:
    """The scaled exponential unit with the paper's constants, which torch has fixed."""
    call.require("alpha", 1.6732632423543772, 1.67326319217681884765625)
    call.require("gamma", 1.0507009873554805, 1.05070102214813232421875)
    return F.selu(call.tensor(0))


@onnx_op("Gelu")
def gelu(call: Call) -> Result:
    """x Phi(x), or its tanh approximation."""
    call.require("approximate", "none", "tanh")
    return F.gelu(call.tensor(0), approximate=call.text("approximate", "none"))


@onnx_op("Swish")
def swish(call: Call) -> Result:
    """x sigmoid(alpha x)."""
    alpha, x = call.real("alpha", 1.0), call.tensor(0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


@onnx_op("ThresholdedRelu")
def thresholded_relu(call: Call) -> Result:
    """x where it exceeds alpha, else 0."""
    return F.threshold(call.tensor(0), call.real("alpha", 1.0), 0.0)


@onnx_op("Where")
def where(call: Call) -> Result:
    """One of two, place by place."""
    return torch.where(call.tensor(0), call.tensor(1), call.tensor(2))


@onnx_op("Cast")
def cast_tensor(call: Call) -> Result:
    """Another dtype."""
    return call.tensor(0).to(torch_dtype(dtype_of(call)))


@onnx_op("Identity")
def identity(call: Call) -> Result:
    """The same value."""
    return call.value(0)


@onnx_op("Dropout")
def dropout(call: Call) -> Result:
    """Nothing in evaluation; trains where the model is trained. A mask that is read is refused."""
    if len([name for name in call.step.outputs if name]) > 1:
        raise call.step.refused("one output", "the mask too")
    if call.has(2) and call.number(2, False):
        raise call.step.refused("training_mode = 0", "1")
    ratio = call.number(1, call.real("ratio", 0.5))
    return F.dropout(call.tensor(0), float(ratio), False)
