"""ONNX operators that take many values to one, or normalise over an axis; pooling; resizing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgeprune.recipe.onnx_call import Call, Result, onnx_op
from edgeprune.recipe.onnx_ops_layers import kernel_shape, padded, windows


@onnx_op(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"
)
def reduce(call: Call) -> Result:
    """Over the axes, over all where none is given (or nothing, where the node says so)."""
    x, axes = call.tensor(0), call.axes()
    if not axes:
        if call.integer("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    keep = bool(call.integer("keepdims", 1))
    match call.step.op:
        case "ReduceMean":
            return x.mean(axes, keep)
        case "ReduceSum":
            return x.sum(axes, keep)
        case "ReduceMax":
            return x.amax(axes, keep)
        case "ReduceMin":
            return x.amin(axes, keep)
        case "ReduceL1":
            return x.abs().sum(axes, keep)
        case "ReduceL2":
            return norm(x, 2, axes, keep)
        case _:
            return (x * x).sum(axes, keep)


@onnx_op("ArgMax", "ArgMin")
def arg_extreme(call: Call) -> Result:
    """Place of the largest or smallest value, the first of equals."""
    call.require("select_last_index", 0)
    axis, keep = call.integer("axis", 0), bool(call.integer("keepdims", 1))
    function = torch.argmax if call.step.op == "ArgMax" else torch.argmin
    return function(call.tensor(0), axis, keep)


@onnx_op("Softmax", "LogSoftmax")
def softmax(call: Call) -> Result:
    """Over one axis; before opset 13 over all axes from `axis` on, taken as one."""
    x = call.tensor(0)
    function = F.softmax if call.step.op == "Softmax" else F.log_softmax
    if call.step.opset >= 13:
        return function(x, call.integer("axis", -1))
    axis = call.integer("axis", 1) % x.dim()
    if axis == x.dim() - 1:
        return function(x, -1)
    return function(x.flatten(axis), -1).reshape(x.shape)


@onnx_op("LpNormalization")
def lp_normalization(call: Call) -> Result:
    """Divided by the norm over an axis."""
    x, axis = call.tensor(0), call.integer("axis", -1)
    return x / norm(x, call.integer("p", 2), [axis], True)


def norm(x: torch.Tensor, order: int, axes: list[int], keep: bool) -> torch.Tensor:
    """The norm over the axes."""
    found: torch.Tensor = torch.linalg.vector_norm(x, order, axes, keep)
    return found


@onnx_op("GlobalAveragePool")
def global_average(call: Call) -> Result:
    """The mean over all spatial axes, which stay with size 1."""
    x = call.tensor(0)
    return x.mean(list(range(2, x.dim())), True)


@onnx_op("GlobalMaxPool")
def global_maximum(call: Call) -> Result:
    """The maximum over all spatial axes, which stay with size 1."""
    x = call.tensor(0)
    return x.amax(list(range(2, x.dim())), True)


@onnx_op("MaxPool")
def max_pool(call: Call) -> Result:
    """The maximum in each window; padding never wins."""
    if len([name for name in call.step.outputs if name]) > 1:
        raise call.step.refused("one output", "the indices too")
    x, kernel = call.tensor(0), kernel_shape(call)
    dims = x.dim() - 2
    strides, dilations, before, after = windows(call, dims)
    ceil = bool(call.integer("ceil_mode", 0))
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        # torch pads both ends alike, by half a window at most.
        x, before = padded(x, before, after, float("-inf")), [0] * dims
    if dims == 1:
        return F.max_pool1d(x, kernel, strides, before, dilations, ceil)
    if dims == 2:
        return F.max_pool2d(x, kernel, strides, before, dilations, ceil)
    if dims == 3:
        return F.max_pool3d(x, kernel, strides, before, dilations, ceil)
    raise call.step.refused("1 to 3 spatial axes", str(dims))


@onnx_op("AveragePool")
def average_pool(call: Call) -> Result:
    """The mean of each window; padding counts only with count_include_pad."""
    x, kernel = call.tensor(0), kernel_shape(call)
    dims = x.dim() - 2
    strides, dilations, before, after = windows(call, dims)
    if any(size != 1 for size in dilations):
        raise call.step.refused("dilations of 1", str(dilations))
    ceil, counts = bool(call.integer("ceil_mode", 0)), bool(call.integer("count_include_pad", 0))
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        if not counts or ceil:
            raise call.step.refused("the same padding at both ends", f"{before} and {after}")
        x, before = padded(x, before, after), [0] * dims
    if dims == 1:
        return F.avg_pool1d(x, kernel, strides, before, ceil, counts)
    if dims == 2:
        return F.avg_pool2d(x, kernel, strides, before, ceil, counts)
    if dims == 3:
        return F.avg_pool3d(x, kernel, strides, before, ceil, counts)
    raise call.step.refused("1 to 3 spatial axes", str(dims))


@onnx_op("Resize", "Upsample")
def resize(call: Call) -> Result:
    """Spatial axes enlarged or shrunk, in the conventions that torch has too.

    nearest with asymmetric coordinates and floor; linear (1 to 3 spatial axes) and cubic with
    half_pixel, pytorch_half_pixel or align_corners. Any other convention is refused.
    """
    x = call.tensor(0)
    sizes, scales = _target(call, x)
    mode = call.text("mode", "nearest")
    is_old = call.step.op == "Upsample" or call.step.opset < 11
    coordinates = call.text(
        "coordinate_transformation_mode", "asymmetric" if is_old else "half_pixel"
    )
    call.require("antialias", 0)
    call.require("exclude_outside", 0)
    spatial = x.dim() - 2
    if mode == "nearest":
        rounding = call.text("nearest_mode", "floor" if is_old else "round_prefer_floor")
        whole = sizes is not None and all(
            a % b == 0 for a, b in zip(sizes, x.shape[2:], strict=True)
        )
        # Where every pixel is repeated a whole number of times, all conventions but these agree.
        plain = coordinates == "asymmetric" and rounding == "floor"
        halves = whole and coordinates in ("half_pixel", "pytorch_half_pixel")
        if plain or (halves and rounding.startswith("round")):
            return F.interpolate(x, sizes, scales, mode="nearest")
        raise call.step.refused("asymmetric coordinates and floor", f"{coordinates}, {rounding}")
    names = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear"}
    names[("cubic", 2)] = "bicubic"
    if (mode, spatial) not in names or coordinates not in (
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
    ):
        raise call.step.refused(
            "linear or cubic with half_pixel or align_corners", f"{mode}, {coordinates}"
        )
    if mode == "cubic":
        call.require("cubic_coeff_a", -0.75)
    aligned = coordinates == "align_corners"
    return F.interpolate(x, sizes, scales, mode=names[mode, spatial], align_corners=aligned)


def _target(call: Call, x: torch.Tensor) -> tuple[list[int] | None, list[float] | None]:
    """Sizes or scales of the spatial axes; sizes where a scale gives whole ones."""
    call.require("keep_aspect_ratio_policy", "stretch")
    if "axes" in call.step.attributes and call.integers("axes") != list(range(x.dim())):
        if call.integers("axes") != list(range(2, x.dim())):
            raise call.step.refused("the spatial axes resized", str(call.integers("axes")))
        skipped = 0
    else:
        skipped = 2
    if call.has(3) and call.numbers(3):
        return call.sizes(3)[skipped:], None
    place = 2 if call.step.op == "Resize" and call.step.opset >= 11 else 1
    if call.has(place):
        scales = [float(value) for value in call.numbers(place)]
    else:
        found = call.step.attributes.get("scales")
        if not isinstance(found, tuple):
            raise call.step.refused("sizes or scales", "neither")
        scales = [float(value) for value in found]
    if skipped and any(scale != 1.0 for scale in scales[:2]):
        raise call.step.refused("batch and channels as they are", f"scales {scales}")
    scales = scales[skipped:]
    whole = [scale * size for scale, size in zip(scales, x.shape[2:], strict=True)]
    if all(float(value).is_integer() for value in whole):
        return [int(value) for value in whole], None
    return None, scales
