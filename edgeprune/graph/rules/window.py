"""Pooling and resizing: windows over the trailing dims, channel by channel."""

from __future__ import annotations

import torch

from edgeprune.graph.labels import Value
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

# How many trailing dims each op slides over.
_ONE = (
    aten.avg_pool1d.default,
    aten.max_pool1d.default,
    aten.adaptive_avg_pool1d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_linear1d.vec,
)
_TWO = (
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec,
)
_THREE = (
    aten.avg_pool3d.default,
    aten.max_pool3d.default,
    aten.adaptive_avg_pool3d.default,
    aten.upsample_nearest3d.vec,
    aten.upsample_trilinear3d.vec,
)
_COUNT = {op: n for n, ops in ((1, _ONE), (2, _TWO), (3, _THREE)) for op in ops}


@rule(*_COUNT)
def window(t: Trace, x: Value, *args: object, **kwargs: object) -> Value:
    """Channels pass; positions along the sliding dims are mixed, so they are tied.

    x (2, 8, 28, 28) pooled to (2, 8, 14, 14): channel 3 stays channel 3.
    """
    count = _COUNT[t.target]
    shape = t.shape
    dims = tuple(range(len(shape) - count, len(shape)))
    layers = []
    for layer in x.layers:
        t.tie(layer, dims, "a window slides over this axis")
        for dim in dims:
            layer = layer.narrow(dim, 0, 1)
        layers.append(layer)
    return t.settle(Value(shape, tuple(layers)))
