"""ONNX operators with weights: convolutions, products, norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgeprune.recipe.onnx_call import Call, Result, onnx_op


def windows(call: Call, dims: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and padding before and after, of `dims` spatial axes.

    SAME_UPPER and SAME_LOWER are written out from the input's size, which must be fixed.
    """
    strides = call.integers("strides", [1] * dims)
    dilations = call.integers("dilations", [1] * dims)
    pads = call.integers("pads", [0] * (2 * dims))
    before, after = pads[:dims], pads[dims:]
    mode = call.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        kernel = kernel_shape(call)
        for axis, size in enumerate(call.tensor(0).shape[2:]):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + reach - size, 0)
            small, large = total // 2, total - total // 2
            upper = mode == "SAME_UPPER"
            before[axis], after[axis] = (small, large) if upper else (large, small)
    elif mode == "VALID":
        before, after = [0] * dims, [0] * dims
    return strides, dilations, before, after


def kernel_shape(call: Call) -> list[int]:
    """The window: as an attribute, or as the weight has it."""
    if "kernel_shape" in call.step.attributes:
        return call.integers("kernel_shape")
    return list(call.tensor(1).shape[2:])


def padded(
    x: torch.Tensor, before: list[int], after: list[int], value: float = 0.0
) -> torch.Tensor:
    """The spatial axes padded with a constant; as it is where there is nothing to pad."""
    if not any((*before, *after)):
        return x
    pairs = zip(reversed(before), reversed(after), strict=True)
    return F.pad(x, [size for pair in pairs for size in pair], value=value)


@onnx_op("Conv")
def conv(call: Call) -> Result:
    """x (N, C, ...), weight (M, C / groups, ...), bias (M,)."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    dims = x.dim() - 2
    strides, dilations, before, after = windows(call, dims)
    if before != after:
        x, before = padded(x, before, after), [0] * dims
    group = call.integer("group", 1)
    if dims == 1:
        return F.conv1d(x, weight, bias, strides, before, dilations, group)
    if dims == 2:
        return F.conv2d(x, weight, bias, strides, before, dilations, group)
    if dims == 3:
        return F.conv3d(x, weight, bias, strides, before, dilations, group)
    raise call.step.refused("1 to 3 spatial axes", str(dims))


@onnx_op("ConvTranspose")
def conv_transpose(call: Call) -> Result:
    """x (N, C, ...), weight (C, M / groups, ...); padding is what is cut off at both ends."""
    call.require("auto_pad", "NOTSET")
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    dims = x.dim() - 2
    strides, dilations, before, after = windows(call, dims)
    if before != after:
        raise call.step.refused("the same padding at both ends", f"{before} and {after}")
    if "output_shape" in call.step.attributes:
        raise call.step.refused("output_padding", "output_shape")
    more = call.integers("output_padding", [0] * dims)
    group = call.integer("group", 1)
    if dims == 1:
        return F.conv_transpose1d(x, weight, bias, strides, before, more, group, dilations)
    if dims == 2:
        return F.conv_transpose2d(x, weight, bias, strides, before, more, group, dilations)
    if dims == 3:
        return F.conv_transpose3d(x, weight, bias, strides, before, more, group, dilations)
    raise call.step.refused("1 to 3 spatial axes", str(dims))


@onnx_op("Gemm")
def gemm(call: Call) -> Result:
    """alpha * A @ B + beta * C: a linear layer where the factors are 1 and B is transposed."""
    left, right, bias = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    if call.integer("transA", 0):
        left = left.t()
    is_transposed = bool(call.integer("transB", 0))
    plain = alpha == 1.0 and (bias is None or beta == 1.0)
    if plain and is_transposed and (bias is None or bias.dim() == 1):
        return F.linear(left, right, bias)
    if is_transposed:
        right = right.t()
    if plain and bias is not None and bias.dim() == 1:
        return torch.addmm(bias, left, right)
    product = torch.matmul(left, right)
    if alpha != 1.0:
        product = product * alpha
    if bias is None or beta == 0.0:
        return product
    return product + (bias if beta == 1.0 else bias * beta)


@onnx_op("MatMul")
def matmul(call: Call) -> Result:
    """NumPy's matmul."""
    return torch.matmul(call.tensor(0), call.tensor(1))


@onnx_op("Einsum")
def einsum(call: Call) -> Result:
    """A contraction by its equation."""
    operands = [call.tensor(index) for index in range(len(call.values))]
    return torch.einsum(call.text("equation", ""), *operands)


@onnx_op("BatchNormalization")
def batch_norm(call: Call) -> Result:
    """x (N, C, ...) with the running statistics; ONNX's momentum is the share that stays."""
    call.require("training_mode", 0)
    call.require("spatial", 1)
    x, weight, bias, mean, variance = (call.tensor(index) for index in range(5))
    # A file without BatchNorm's momentum has ONNX's default, which is torch's: 0.9 stays.
    momentum = 1.0 - call.real("momentum", 0.9)
    epsilon = call.real("epsilon", 1e-5)
    return F.batch_norm(x, mean, variance, weight, bias, False, round(momentum, 6), epsilon)


@onnx_op("LayerNormalization")
def layer_norm(call: Call) -> Result:
    """Normalised over the axes from `axis` on."""
    if len([name for name in call.step.outputs if name]) > 1:
        raise call.step.refused("one output", "mean and deviation too")
    x = call.tensor(0)
    first = call.integer("axis", -1) % x.dim()
    shape = list(x.shape[first:])
    weight, bias = call.tensor(1), call.optional(2)
    epsilon = call.real("epsilon", 1e-5)
    if list(weight.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, weight, bias, epsilon)
    result = F.layer_norm(x, shape, None, None, epsilon) * weight
    return result if bias is None else result + bias


@onnx_op("RMSNormalization")
def rms_norm(call: Call) -> Result:
    """Divided by the root mean square over the axes from `axis` on."""
    x = call.tensor(0)
    shape = list(x.shape[call.integer("axis", -1) % x.dim() :])
    return F.rms_norm(x, shape, None, call.real("epsilon", 1e-5)) * call.tensor(1)


@onnx_op("InstanceNormalization")
def instance_norm(call: Call) -> Result:
    """Every channel of every sample normalised by itself: x (N, C, ...)."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    return F.instance_norm(x, None, None, weight, bias, True, 0.1, call.real("epsilon", 1e-5))


@onnx_op("GroupNormalization")
def group_norm(call: Call) -> Result:
    """x (N, C, ...) in groups of channels; scale and bias of C (opset 18: of one each group)."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    groups, epsilon = call.integer("num_groups", 1), call.real("epsilon", 1e-5)
    if weight.shape[0] != x.shape[1]:
        repeats = x.shape[1] // weight.shape[0]
        weight, bias = weight.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, groups, weight, bias, epsilon)


@onnx_op("PRelu")
def prelu(call: Call) -> Result:
    """x where positive, else x times the slope, which is broadcast."""
    x, slope = call.tensor(0), call.tensor(1)
    if slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0]:
        return F.prelu(x, slope.reshape(-1))  # (C, 1, 1) beside (N, C, H, W)
    return torch.where(x > 0, x, x * slope)


@onnx_op("LRN")
def local_response_norm(call: Call) -> Result:
    """Divided by a power of the sum of squares of neighbouring channels."""
    size = call.integer("size", 1)
    if size % 2 == 0:  # torch and ONNX centre an even window differently
        raise call.step.refused("an odd window", str(size))
    alpha, beta, bias = (
        call.real(n, d) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return F.local_response_norm(call.tensor(0), size, alpha, beta, bias)
