"""Operators that move elements about: one rule, run the operator itself on the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten


_VIEWS = (aten.view.default, aten._unsafe_view.default)


def collapse(layer: torch.Tensor) -> torch.Tensor:
    """Narrow to size 1 every dim along which the layer is constant.

    (2, 8, 5, 5) that varies along dim 1 only -> (1, 8, 1, 1). Broadcast dims (stride 0) cost
    nothing, others one comparison.
    """
    for dim, size in enumerate(layer.shape):
        if size <= 1:
            continue
        first = layer.narrow(dim, 0, 1)
        if layer.stride(dim) == 0 or bool((layer == first).all()):
            layer = first
    return layer


@rule(
    aten.chunk.default,
    aten.channel_shuffle.default,
    aten.diagonal.default,
    aten.flatten.using_ints,
    aten.flip.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.narrow.default,
    aten.numpy_T.default,
    aten.permute.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.reshape.default,
    aten.roll.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze_.dim,
    aten.swapaxes.default,
    aten.t.default,
    aten.transpose.int,
    aten.tensor_split.sections,
    aten.tile.default,
    aten.unbind.int,
    aten.unflatten.int,
    aten.unfold.default,
    aten.unsqueeze.default,
    aten.unsqueeze_.default,
    aten._unsafe_view.default,
    aten.view.default,
)
def movement(t: Trace, x: Value, *args: object, **kwargs: object) -> Value | tuple[Value, ...]:
    """Each element takes its label along, because the op runs on the labels.

    x (2, 6) with labels 1..6, flip over dim 1: the result has labels 6..1, so a reader behind it
    loses its input 5 when x loses channel 0. view (2, 6) -> (2, 2, 3): [[1, 2, 3], [4, 5, 6]].
    """
    if t.target is aten.slice.Tensor and t.node.name in t.written and args[3:] not in ((), (1,)):
        # Survivors of a stepped slice are no view; a copy would lose what is written.
        t.pin(x, "a stepped slice of it is written in place")
    # A view of labels may need a copy where a view of the values does not.
    target = aten.reshape.default if t.target in _VIEWS else t.target
    probe = target(torch.zeros(1).expand(x.shape), *args, **kwargs)
    results = [target(layer.expand(x.shape), *args, **kwargs) for layer in x.layers]
    if isinstance(probe, torch.Tensor):
        layers = tuple(collapse(result) for result in results)
        return t.settle(Value(tuple(probe.shape), layers))
    return tuple(
        t.settle(Value(tuple(part.shape), tuple(collapse(result[index]) for result in results)))
        for index, part in enumerate(probe)
    )


@rule(aten.expand.default, aten.broadcast_to.default)
def expand(t: Trace, x: Value, size: Sequence[int], **kwargs: object) -> Value:
    """Repeat dims of size 1; the new positions are this node's own and can shrink.

    x (2, 1, 8) -> (2, 4, 8): labels of dim 2 stay, dim 1 gets four fresh labels, because the 4
    is written here and can be rewritten.
    """
    written = t.node.args[1]
    ndim = len(size)
    missing = ndim - len(x.shape)
    old = (1,) * missing + x.shape
    layers = tuple(layer.reshape((1,) * missing + tuple(layer.shape)) for layer in x.layers)
    shape = tuple(old[d] if s == -1 else int(s) for d, s in enumerate(size))
    fresh = tuple(
        dim
        for dim in range(ndim)
        if old[dim] == 1 and shape[dim] > 1 and not _is_symbolic(written, dim)
    )
    return t.created(Value(shape, layers), fresh)


@rule(aten.expand_as.default)
def expand_as(t: Trace, x: Value, other: Value) -> Value:
    """The new positions are those of `other`, whose size x follows at run time.

    x (2, 1, 8) as other (2, 4, 8): dim 1 carries other's labels of dim 1, dim 2 keeps x's.
    """
    missing = len(other.shape) - len(x.shape)
    old = (1,) * missing + x.shape
    layers = [layer.reshape((1,) * missing + tuple(layer.shape)) for layer in x.layers]
    for layer in other.layers:
        dims = varying(layer)
        if all(old[dim] == 1 for dim in dims):
            layers.append(layer)
        elif any(old[dim] == 1 for dim in dims):
            t.labels.pin(layer, t.cause("only a part of its axes is expanded"))
    return Value(other.shape, tuple(layers))


def _is_symbolic(written: object, dim: int) -> bool:
    return isinstance(written, list | tuple) and isinstance(written[dim], fx.Node)


@rule(aten.constant_pad_nd.default, aten.pad.default)
def pad(t: Trace, x: Value, widths: Sequence[int], *args: object, **kwargs: object) -> Value:
    """Padding along a labelled dim adds positions that stay; along others nothing changes.

    x (2, 3, 8) with labels along dim 1, widths (1, 1, 0, 2): dim 1 becomes labels 1, 2, 3, 0, 0.
    Reflecting or replicating modes copy labels, because torch's own pad runs on them.
    """
    mode = str(args[0]) if args and isinstance(args[0], str) else "constant"
    shape = list(x.shape)
    pairs: dict[int, tuple[int, int]] = {}
    for index in range(len(widths) // 2):
        dim = len(shape) - 1 - index
        pairs[dim] = (int(widths[2 * index]), int(widths[2 * index + 1]))
        shape[dim] += sum(pairs[dim])
    layers = tuple(_pad_layer(layer, pairs, mode) for layer in x.layers)
    return t.settle(Value(tuple(shape), layers))


def _pad_layer(layer: torch.Tensor, pairs: dict[int, tuple[int, int]], mode: str) -> torch.Tensor:
    for dim, (before, after) in pairs.items():
        if layer.shape[dim] == 1 or (before == 0 and after == 0):
            continue
        size = layer.shape[dim]
        source = torch.arange(-before, size + after)
        outside = (source < 0) | (source >= size)
        match mode:
            case "reflect":
                source = (size - 1) - (source.abs() - (size - 1)).abs()
            case "circular":
                source = source % size
            case _:
                source = source.clamp(0, size - 1)
        layer = layer.index_select(dim, source)
        if mode == "constant":
            shape = [1] * layer.dim()
            shape[dim] = layer.shape[dim]
            layer = layer.masked_fill(outside.reshape(shape), 0)
    return layer
