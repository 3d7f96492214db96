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
        if layer.stride(dim) == 0 or (
            # Of a long dim, the last position tells most that vary without a look at the others.
            torch.equal(layer.narrow(dim, size - 1, 1), first) and bool((layer == first).all())
        ):
            layer = first
    return layer


@rule(
    aten.chunk.default,
    aten.channel_shuffle.default,
    aten.flatten.using_ints,
    aten.flip.default,
    aten.fliplr.default,
    aten.flipud.default,
    aten.mT.default,
    aten.moveaxis.int,
    aten.moveaxis.intlist,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.narrow.default,
    aten.numpy_T.default,
    aten.permute.default,
    aten.ravel.default,
    aten.reshape.default,
    aten.rot90.default,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze_.dim,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.t.default,
    aten.transpose.int,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.tile.default,
    aten.unflatten.int,
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
    probe = target(torch.zeros(()).expand(x.shape), *args, **kwargs)
    results = [target(layer.expand(x.shape), *args, **kwargs) for layer in x.layers]
    if isinstance(probe, torch.Tensor):
        layers = tuple(collapse(result) for result in results)
        return t.settle(Value(tuple(probe.shape), layers))
    return tuple(
        t.settle(Value(tuple(part.shape), tuple(collapse(result[index]) for result in results)))
        for index, part in enumerate(probe)
    )


@rule(aten.select.int, aten.unbind.int)
def picked(t: Trace, x: Value, dim: int = 0, *args: object) -> Value | tuple[Value, ...]:
    """As `movement`; what is picked by its number must stay, so only whole columns may go.

    x (2, 3, 8) with labels along dims 1 and 2, unbind over dim 1: three values (2, 8), and
    position 5 of all three is one unit.
    """
    axis = dim % len(x.shape)
    for layer in x.layers:
        if layer.shape[axis] > 1 and len(varying(layer)) > 1:
            t.tie(layer, (axis,), "picked by number along this axis")
    return movement(t, x, dim, *args)


@rule(aten.view_as_complex.default)
def view_as_complex(t: Trace, x: Value) -> Value:
    """Two neighbours become one number: x (2, 4, 2) with labels along dims 1 and 2 -> (2, 4)."""
    layers = []
    for layer in x.layers:
        t.tie(layer, (layer.dim() - 1,), "real and imaginary part of one number")
        layers.append(layer.select(-1, 0))
    return t.settle(Value(x.shape[:-1], tuple(layers)))


@rule(aten.view_as_real.default)
def view_as_real(t: Trace, x: Value) -> Value:
    """Each number as two neighbours: x (2, 4) -> (2, 4, 2), the pair keeps the number's label."""
    return Value((*x.shape, 2), tuple(layer.unsqueeze(-1) for layer in x.layers))


@rule(aten.roll.default)
def roll(t: Trace, x: Value, shifts: int | Sequence[int], dims: Sequence[int] = ()) -> Value:
    """As `movement`; without dims the whole tensor is one row, and samples run into each other.

    x (2, 6) with labels 1..6, roll by 2 over dim 1: 5, 6, 1, 2, 3, 4.
    """
    if not dims:
        t.pin(x, "rolled across all of its axes at once")
        return Value(x.shape)
    moved = movement(t, x, shifts, dims)
    return moved if isinstance(moved, Value) else Value(x.shape)


@rule(aten.unfold.default)
def windows(t: Trace, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows that lie side by side are a view; any other cut of a labelled axis pins it.

    x (2, 8) with labels 1..8, size 2, step 2: [[1, 2], [3, 4], [5, 6], [7, 8]]. With step 3 the
    labels 3 and 6 are in no window, and removing one would shift the windows behind it.
    """
    axis = dim % len(x.shape)
    if size != step or x.shape[axis] % size:
        for layer in x.layers:
            if layer.shape[axis] > 1:
                t.labels.pin(layer, t.cause("cut into windows of fixed size and step"))
    layers = tuple(collapse(layer.expand(x.shape).unfold(dim, size, step)) for layer in x.layers)
    return t.settle(Value(t.shape, layers))


@rule(aten.pixel_shuffle.default, aten.pixel_unshuffle.default)
def pixels(t: Trace, x: Value, factor: int) -> Value:
    """Channels become pixels or pixels channels; rows and columns of pixels stay.

    x (2, 16, 4, 4), shuffled by 2 to (2, 4, 8, 8): channels 0-3 of x are one unit, channel 0.
    """
    why = "rows and columns of pixels stay"
    for layer in x.layers:
        t.tie(layer, (layer.dim() - 2, layer.dim() - 1), why)
    layers = tuple(collapse(t.target(layer.expand(x.shape), factor)) for layer in x.layers)
    for layer in layers:
        t.tie(layer, (layer.dim() - 2, layer.dim() - 1), why)
    return t.settle(Value(t.shape, layers))


@rule(aten.diagonal.default)
def diagonal(t: Trace, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """Position i of one dim with position i of the other: they go together, or stay.

    x (2, 6, 6), a Gram matrix of 6 channels: row 4 and column 4 are one unit, position 4 of the
    result.
    """
    one, two = dim1 % len(x.shape), dim2 % len(x.shape)
    square = offset == 0 and x.shape[one] == x.shape[two]
    sides: list[list[torch.Tensor]] = [[], []]
    passing = []
    for layer in x.layers:
        dims = varying(layer)
        if one not in dims and two not in dims:
            passing.append(layer.diagonal(0, dim1, dim2))
        elif square and len(dims) == 1:
            sides[dims[0] == two].append(layer.reshape(-1))
        else:
            t.labels.pin(layer, t.cause("read along a diagonal"))
    size = t.shape[-1]
    met = t.meet(*[Value((size,), tuple(side)) for side in sides], reason="read along a diagonal")
    return t.settle(Value(t.shape, (*passing, *(_last(v, len(t.shape)) for v in met.layers))))


def _last(vector: torch.Tensor, ndim: int) -> torch.Tensor:
    return vector.reshape((1,) * (ndim - 1) + (-1,))


@rule(aten.view_as.default, aten.reshape_as.default)
def view_as(t: Trace, x: Value, other: Value) -> Value:
    """x's elements in `other`'s shape: they go together, as the size is read at run time.

    x (2, 2, 3) as other (2, 6): [[1, 2, 3], [4, 5, 6]] meets other's labels of dim 1.
    """
    layers = tuple(collapse(layer.expand(x.shape).reshape(other.shape)) for layer in x.layers)
    why = "takes the shape of a value that cannot shrink with it"
    return t.settle(t.meet(Value(other.shape, layers), other, reason=why))


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


@rule(aten.repeat.default)
def repeat(t: Trace, x: Value, repeats: Sequence[int]) -> Value:
    """Copies keep their labels; a dim of size 1 repeated is as `expand`, its number can follow.

    x (2, 3) with labels 1..3, repeats (1, 2): 1, 2, 3, 1, 2, 3. x (2, 1), repeats (1, 8): eight
    fresh labels along dim 1.
    """
    moved = movement(t, x, repeats)
    if not isinstance(moved, Value):
        return Value(t.shape)
    missing = len(repeats) - len(x.shape)
    old = (1,) * missing + x.shape
    written = t.node.args[1]
    fresh = tuple(
        dim
        for dim in range(len(repeats))
        if old[dim] == 1 and moved.shape[dim] > 1 and not _is_symbolic(written, dim)
    )
    return t.created(moved, fresh)


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(
    t: Trace, x: Value, repeats: int, dim: int | None = None, **kwargs: object
) -> Value:
    """Each position a number of times in a row; a single one is as in `expand`.

    x (2, 2) with labels 1, 2, twice along dim 1: 1, 1, 2, 2. x (2, 1), 8 times: eight fresh labels.
    """
    moved = movement(t, x, repeats, dim)
    if not isinstance(moved, Value):
        return Value(t.shape)
    single = dim is not None and x.shape[dim] == 1 and isinstance(t.node.args[1], int)
    return t.created(moved, (dim % len(x.shape),) if single and dim is not None else ())


@rule(aten.expand_as.default)
def expand_as(t: Trace, x: Value, other: Value) -> Value:
    """The new positions are those of `other`, whose size x follows at run time; the rest meets.

    x (2, 1, 8) as other (2, 4, 8): dim 1 carries other's labels, x's and other's of dim 2 join.
    """
    return t.meet(x, other, reason="takes the shape of a value that cannot shrink with it")


@rule(aten.broadcast_tensors.default)
def broadcast_tensors(t: Trace, tensors: Sequence[Value]) -> tuple[Value, ...]:
    """All in the shape that they have together: what follows another's size meets it.

    x (2, 1, 8) and y (2, 4, 1): both results (2, 4, 8) carry y's labels of dim 1 and x's of dim 2.
    """
    together = t.meet(*tensors, reason="takes the shape of a value that cannot shrink with it")
    return (together,) * len(tensors)


def _is_symbolic(written: object, dim: int) -> bool:
    return isinstance(written, list | tuple) and isinstance(written[dim], fx.Node)


@rule(aten.constant_pad_nd.default, aten.pad.default)
def pad(t: Trace, x: Value, widths: Sequence[int], *args: object, **kwargs: object) -> Value:
    """Padding along a labelled dim adds positions that stay; along others nothing changes.

    x (2, 3, 8) with labels along dim 1, widths (1, 1, 0, 2): dim 1 becomes labels 1, 2, 3, 0, 0.
    Reflecting or replicating modes copy labels, because torch's own pad runs on them. A box
    (head, 8) gets one new label for each head: what is added to a head goes with it.
    """
    mode = str(args[0]) if args and isinstance(args[0], str) else "constant"
    shape = list(x.shape)
    pairs: dict[int, tuple[int, int]] = {}
    for index in range(len(widths) // 2):
        dim = len(shape) - 1 - index
        pairs[dim] = (int(widths[2 * index]), int(widths[2 * index + 1]))
        shape[dim] += sum(pairs[dim])
    layers = tuple(_pad_layer(t, layer, pairs, mode) for layer in x.layers)
    return t.settle(Value(tuple(shape), layers))


def _pad_layer(
    t: Trace, layer: torch.Tensor, pairs: dict[int, tuple[int, int]], mode: str
) -> torch.Tensor:
    for dim, (before, after) in pairs.items():
        if layer.shape[dim] == 1 or (before == 0 and after == 0):
            continue
        source = padded_positions(layer.shape[dim], before, after, mode)
        shape = [1] * layer.dim()
        shape[dim] = len(source)
        added = torch.zeros(1, dtype=torch.int64)
        others = layer.narrow(dim, 0, 1)
        if others.numel() > 1 and bool((source < 0).any()):
            fresh = t.labels.fresh(t.node.name, dim, others.numel(), is_parameter=False)
            added = fresh.reshape(others.shape)
        layer = layer.index_select(dim, source.clamp_min(0))
        layer = torch.where((source < 0).reshape(shape), added, layer)
    return layer


def padded_positions(size: int, before: int, after: int, mode: str) -> torch.Tensor:
    """Which position each one after padding repeats; -1 where it is a new one. int64.

    size 4, before 1, after 2: constant -> -1, 0, 1, 2, 3, -1, -1; reflect -> 1, 0, 1, 2, 3, 2, 1.
    """
    source = torch.arange(-before, size + after)
    outside = (source < 0) | (source >= size)
    match mode:
        case "reflect":
            return (size - 1) - (source.abs() - (size - 1)).abs()
        case "circular":
            return source % size
        case "replicate":
            return source.clamp(0, size - 1)
        case _:
            return source.masked_fill(outside, -1)
