"""Pooling and resizing: windows over the trailing dims, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.observe import TensorFact
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

# How many trailing dims each op slides over.
_ONE = (
    aten.avg_pool1d.default,
    aten.max_pool1d.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_max_pool1d.default,
    aten.max_pool1d_with_indices.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_linear1d.vec,
)
_TWO = (
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec,
    aten._upsample_bilinear2d_aa.vec,
    aten._upsample_bicubic2d_aa.vec,
)
_THREE = (
    aten.avg_pool3d.default,
    aten.max_pool3d.default,
    aten.adaptive_avg_pool3d.default,
    aten.adaptive_max_pool3d.default,
    aten.max_pool3d_with_indices.default,
    aten.upsample_nearest3d.vec,
    aten.upsample_trilinear3d.vec,
)
_WHY = "a window slides over this axis"
_COUNT = {op: n for n, ops in ((1, _ONE), (2, _TWO), (3, _THREE)) for op in ops}


@rule(*_COUNT)
def window(t: Trace, x: Value, *args: object, **kwargs: object) -> Value | tuple[Value, ...]:
    """Channels pass; positions along the sliding dims are mixed, so they are tied.

    x (2, 8, 28, 28) pooled to (2, 8, 14, 14): channel 3 stays channel 3. A maximum may come with
    the places it was found at, channel by channel as well. An axis that the window does not slide
    over passes too: tokens (2, 1, 12, 64) pooled by (2, 1) to (2, 1, 6, 64).
    """
    first = len(x.shape) - _COUNT[t.target]
    dims = tuple(first + d for d in _slid_over(t, args, kwargs))
    layers = channels_beside(t, x, dims, _WHY)
    fact = t.facts[t.node.name]
    if isinstance(fact, tuple):
        shapes = [member.shape for member in fact if isinstance(member, TensorFact)]
        return tuple(Value(shape, layers) for shape in shapes)
    return Value(t.shape, layers)


def _slid_over(t: Trace, args: Sequence[object], kwargs: Mapping[str, object]) -> list[int]:
    """Of the trailing dims, those that a pool mixes: not those of kernel and stride 1, unpadded."""
    count = _COUNT[t.target]
    names = [argument.name for argument in t.target._schema.arguments[1:]]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    if "kernel_size" not in given:
        return list(range(count))
    kernel = _sizes(given["kernel_size"], count)
    stride = _sizes(given.get("stride") or given["kernel_size"], count)
    padding = _sizes(given.get("padding", 0), count)
    return [d for d in range(count) if (kernel[d], stride[d], padding[d]) != (1, 1, 0)]


def _sizes(given: object, count: int) -> tuple[object, ...]:
    """One number a dim: 2 -> (2, 2); (2, 1) as it is."""
    numbers = tuple(given) if isinstance(given, list | tuple) else (given,)
    return numbers * count if len(numbers) == 1 else numbers


@rule(aten.grid_sampler.default)
def sampler(t: Trace, x: Value, grid: Value, *args: object) -> Value:
    """Each channel is read at the places that `grid` names; the grid's own positions stay.

    x (2, 8, 7, 7), grid (2, 5, 5, 2) -> (2, 8, 5, 5): channel 3 stays channel 3; image 1 and
    grid 1 are one unit, as each image has its own grid.
    """
    grids = []
    for layer in grid.layers:
        if varying(layer) == (0,):
            grids.append(layer)
        else:
            t.labels.pin(layer, t.cause("its positions are places to read at"))
    tail = (1,) * (len(x.shape) - 2)
    images = Value((*x.shape[:2], *tail), _channels(t, x, len(tail)))
    met = t.meet(images, Value((grid.shape[0], 1, *tail), tuple(grids)))
    return Value(t.shape, met.layers)


@rule(aten.max_unpool2d.default, aten.max_unpool3d.default)
def unpool(t: Trace, x: Value, places: Value, *args: object) -> Value:
    """Each channel goes back to the places that its maxima were found at, in its own plane.

    x and places (2, 8, 7, 7) -> (2, 8, 14, 14): channel 3 of both is one unit and stays channel 3.
    """
    count = 2 if t.target is aten.max_unpool2d.default else 3
    parts = [Value(part.shape, _channels(t, part, count)) for part in (x, places)]
    return Value(t.shape, t.meet(*parts).layers)


@rule(aten.im2col.default)
def patches(t: Trace, x: Value, kernel: Sequence[int], *args: object) -> Value:
    """Every channel becomes as many as the kernel has positions.

    x (2, 4, 7, 7), kernel (3, 3) -> (2, 36, 25): positions 18-26 are channel 2.
    """
    count = kernel[0] * kernel[1]
    layers = [_flat(layer) for layer in _channels(t, x, 2)]
    # Samples of a batch, where these have labels, are as many as before.
    wide = (one.repeat_interleave(count, -2) if one.shape[-2] > 1 else one for one in layers)
    return Value(t.shape, tuple(wide))


@rule(aten.col2im.default)
def overlapped(t: Trace, x: Value, size: Sequence[int], kernel: Sequence[int], *_: object) -> Value:
    """The positions of one kernel are added up in one channel, and go together.

    x (2, 36, 25), kernel (3, 3) -> (2, 4, 7, 7): positions 18-26 are channel 2.
    """
    count = kernel[0] * kernel[1]
    layers = []
    for layer in channels_beside(t, x, (len(x.shape) - 1,), _WHY):
        if layer.shape[-2] > 1:
            split = layer.reshape(*layer.shape[:-2], -1, count)
            t.tie(split, (split.dim() - 1,), "patches that overlap are added up in one channel")
            layer = split[..., :1]
        layers.append(layer.unsqueeze(-1))
    return Value(t.shape, tuple(layers))


def _flat(layer: torch.Tensor) -> torch.Tensor:
    return layer.reshape(*layer.shape[:-2], 1)


def channels_beside(
    t: Trace, x: Value, dims: tuple[int, ...], why: str
) -> tuple[torch.Tensor, ...]:
    """Layers with size 1 along `dims`, whose positions are mixed; what varies only there stays."""
    layers = []
    for layer in x.layers:
        if set(varying(layer)) <= set(dims):
            t.labels.pin(layer, t.cause(why))
            continue
        t.tie(layer, dims, why)
        for dim in dims:
            layer = layer.narrow(dim, 0, 1)
        layers.append(layer)
    return tuple(layers)


def _channels(t: Trace, x: Value, count: int) -> tuple[torch.Tensor, ...]:
    """Layers with the last `count` dims, which the window slides over, at size 1."""
    dims = tuple(range(len(x.shape) - count, len(x.shape)))
    return channels_beside(t, x, dims, _WHY)
