"""Elements read from and written to numbered places: along every other axis they meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.observe import TensorFact
from edgeprune.graph.registry import rule
from edgeprune.graph.rules.movement import collapse
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

_BY_NUMBER = "indexed by number along this axis"


def numbered(t: Trace, value: Value, dims: tuple[int, ...]) -> Value:
    """What a value says beside `dims`, along which it is read by number: those positions stay.

    x (2, 4, 8) with labels along dims 1 and 2, dims (1,): x's 4 are pinned, size 1 is left there.
    A box is tied along dim 1 and can lose columns.
    """
    layers = []
    for layer in value.layers:
        inside = tuple(d for d in varying(layer) if d in dims)
        if inside and set(varying(layer)) == set(inside):
            t.labels.pin(layer, t.cause(_BY_NUMBER, by_nature=True))
            continue
        t.tie(layer, inside, _BY_NUMBER)
        for dim in inside:
            layer = layer.narrow(dim, 0, 1)
        layers.append(layer)
    shape = tuple(1 if d in dims else size for d, size in enumerate(value.shape))
    return Value(shape, tuple(layers))


def _leading(value: Value, sizes: Sequence[int]) -> Value:
    """The first positions of each dim: gather and scatter take an index that is smaller."""
    layers = []
    for layer in value.layers:
        for dim, size in enumerate(sizes):
            layer = layer.narrow(dim, 0, min(size, layer.shape[dim]))
        layers.append(layer)
    shape = tuple(min(a, b) for a, b in zip(value.shape, sizes, strict=True))
    return Value(shape, tuple(layers))


@rule(aten.gather.default)
def gather(t: Trace, x: Value, dim: int, index: Value, **kwargs: object) -> Value:
    """Tokens are chosen by number; along every other dim index and x meet.

    x (2, 5, 8), dim 1, index (2, 3, 8) -> (2, 3, 8): channel 3 of x and of the index are one unit
    (the index was expanded to 8, and is to 5 afterwards).
    """
    axis = dim % len(x.shape)
    there = numbered(t, index, (axis,))
    here = _leading(numbered(t, x, (axis,)), there.shape)
    return t.settle(Value(t.shape, t.meet(here, there).layers))


@rule(aten.take_along_dim.default)
def take_along_dim(t: Trace, x: Value, index: Value, dim: int | None = None) -> Value:
    """As `gather`, but index and x broadcast: an index (2, 3, 1) imposes nothing on channels."""
    if dim is None:
        t.pin(x, _BY_NUMBER)
        t.pin(index, _BY_NUMBER)
        return Value(t.shape)
    axis = dim % len(x.shape)
    met = t.meet(numbered(t, x, (axis,)), numbered(t, index, (axis,)))
    return t.settle(Value(t.shape, met.layers))


@rule(
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.reduce,
    aten.scatter.value_reduce,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
)
def scatter(
    t: Trace,
    x: Value,
    dim: int,
    index: Value,
    source: Value | float,
    *args: object,
    **kwargs: object,
) -> Value:
    """Written to numbered places along `dim`; along every other dim all of them meet.

    x (2, 5, 8), dim 1, index and source (2, 3, 8): channel 3 of all three is one unit.
    """
    axis = dim % len(x.shape)
    parts = [numbered(t, value, (axis,)) for value in (x, index)]
    if isinstance(source, Value):
        parts.append(numbered(t, source, (axis,)))
    smallest = [min(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    met = t.meet(*[_leading(part, smallest) for part in parts])
    return _as(x, axis, met, parts[0])


@rule(aten.index_add.default, aten.index_copy.default)
def index_add(t: Trace, x: Value, dim: int, index: Value, source: Value, **kwargs: object) -> Value:
    """Slices are written to numbered places along `dim`: x (2, 5, 8), source (2, 3, 8), dim 1.

    Channel 3 of x and source is one unit, x's 5 positions stay.
    """
    axis = dim % len(x.shape)
    t.pin(index, "its positions are read by number", by_nature=True)
    here, there = numbered(t, x, (axis,)), numbered(t, source, (axis,))
    return _as(x, axis, t.meet(here, there), here)


@rule(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def index_fill(t: Trace, x: Value, dim: int, index: Value, value: object) -> Value:
    """As `index_add`, with one number for all: x (2, 9, 8), rows 0 and 4 of dim 1 -> 0."""
    t.pin(index, "its positions are read by number", by_nature=True)
    axis = dim % len(x.shape)
    here = numbered(t, x, (axis,))
    return Value(x.shape, here.layers)


def _as(x: Value, axis: int, met: Value, here: Value) -> Value:
    """The result in x's shape: what met, or x's own labels where only a part of it did."""
    layers = met.layers if met.shape == here.shape else here.layers
    return Value(x.shape, tuple(layer for layer in layers if layer.shape[axis] == 1))


@rule(aten.index_put.default)
def index_put(
    t: Trace,
    x: Value,
    indices: Sequence[Value | None],
    values: Value,
    *args: object,
    **kwargs: object,
) -> Value:
    """x[indices] = values: the indexed dims of x stay, along the others values meet x.

    x (2, 5, 8)[:, [0, 2]] = s (8,): channel 3 of x and s is one unit. A mask of booleans takes as
    many dims as it has.
    """
    dims, probe = places(t, x, indices)
    for value in indices:
        if value is not None:
            t.pin(value, "its positions are read by number", by_nature=True)
    here = numbered(t, x, dims)
    layers = tuple(
        collapse(aten.index.Tensor(layer.expand(x.shape), probe)) for layer in here.layers
    )
    shape = tuple(aten.index.Tensor(torch.zeros(1).expand(x.shape), probe).shape)
    # How many places a mask names is known at run time only: the probe has one.
    counted = tuple(len(values.shape) - len(shape) + d for d, size in enumerate(shape) if size == 1)
    t.meet(Value(shape, layers), numbered(t, values, tuple(d for d in counted if d >= 0)))
    return Value(x.shape, here.layers)


def places(
    t: Trace, x: Value, indices: Sequence[Value | None]
) -> tuple[tuple[int, ...], list[torch.Tensor | None]]:
    """The dims that are indexed, and indices of zeros that give the shape of what is read."""
    written = t.node.args[1]
    dims: list[int] = []
    probe: list[torch.Tensor | None] = []
    for position, value in enumerate(indices):
        if value is None:
            probe.append(None)
            continue
        node = written[position] if isinstance(written, list | tuple) else None
        is_mask = isinstance(node, fx.Node) and _dtype(t, node) in (torch.bool, torch.uint8)
        count = len(value.shape) if is_mask else 1
        # One place at least: on the example none may be named.
        size = (1,) if is_mask else tuple(max(n, 1) for n in value.shape)
        zeros = torch.zeros(size, dtype=torch.int64)
        dims += range(len(probe), len(probe) + count)
        probe += [zeros] * count
    return tuple(dims), probe


def _dtype(t: Trace, node: fx.Node) -> torch.dtype | None:
    fact = t.facts[node.name]
    return fact.dtype if isinstance(fact, TensorFact) else None


@rule(aten.masked_scatter.default)
def masked_scatter(t: Trace, x: Value, mask: Value, source: Value) -> Value:
    """Rows of `source` are written to the tokens that the mask names, where it is one for a token.

    x (2, 5, 8), mask (2, 5, 1) expanded to 8, source (3, 8): channel 3 of all is one unit. Any
    other mask takes numbers from `source` in an order that depends on the width.
    """
    last = len(x.shape) - 1
    written = t.node.args[1]
    rows = (
        isinstance(written, fx.Node)
        and _is_one_for_a_row(t, written, last)
        and source.shape[-1] == x.shape[-1] == mask.shape[-1]
    )
    if not rows:
        for value in (x, mask, source):
            t.pin(value, "numbers are written one after the other")
        return Value(x.shape)
    lead = tuple(range(last))
    here = numbered(t, x, lead)
    there = numbered(t, source, tuple(range(len(source.shape) - 1)))
    size = (1,) * last + (x.shape[-1],)
    along = tuple(layer.reshape(size) for layer in there.layers)
    met = t.meet(here, numbered(t, mask, lead), Value(size, along))
    return Value(x.shape, met.layers)


def _is_one_for_a_row(t: Trace, node: fx.Node, last: int) -> bool:
    """Whether a mask was expanded along its last dim, and nothing was done to it since."""
    plain = (aten.alias.default, aten.clone.default, aten.to.device, aten.to.dtype)
    while node.target in plain:
        source = node.args[0]
        if not isinstance(source, fx.Node):
            return False
        node = source
    if node.target not in (aten.expand.default, aten.expand_as.default):
        return False
    source = node.args[0]
    fact = t.facts[source.name] if isinstance(source, fx.Node) else None
    return isinstance(fact, TensorFact) and bool(fact.shape) and fact.shape[-1] == 1


@rule(aten.repeat_interleave.self_Tensor)
def repeated_by_value(
    t: Trace, x: Value, times: Value, dim: int | None = None, **kwargs: object
) -> Value:
    """Each position of `dim` as often as `times` says: its positions stay, the others pass.

    x (2, 5, 8), times (5,) along dim 1 -> (2, 11, 8): channel 3 stays channel 3.
    """
    t.pin(times, _BY_NUMBER, by_nature=True)
    dims = tuple(range(len(x.shape))) if dim is None else (dim % len(x.shape),)
    here = numbered(t, x, dims)
    return Value(t.shape, here.layers)


@rule(aten.triu.default, aten.tril.default)
def triangle(t: Trace, x: Value, diagonal: int = 0) -> Value:
    """What stays of a matrix depends on the numbers of its rows and columns, so these stay.

    x (2, 4, 5, 5) with labels along dim 1: they pass.
    """
    here = numbered(t, x, (len(x.shape) - 2, len(x.shape) - 1))
    return Value(x.shape, here.layers)


@rule(aten.argsort.default, aten.argsort.stable)
def argsort(t: Trace, x: Value, *args: object, **kwargs: object) -> Value:
    """Places along an axis; along the others the result has x's positions.

    x (2, 5, 8) sorted along dim 1: channel 3 stays channel 3.
    """
    names = [argument.name for argument in t.target._schema.arguments]
    given = dict(zip(names[1:], args, strict=False)) | kwargs
    dim = given.get("dim", -1)
    if not isinstance(dim, int):
        raise TypeError(f"{t.target} over dim {dim!r}")
    return Value(x.shape, numbered(t, x, (dim % len(x.shape),)).layers)


@rule(aten.one_hot.default)
def one_hot(t: Trace, x: Value, count: int = -1) -> Value:
    """A new last dim of classes, which stays: x (2, 5) -> (2, 5, 11)."""
    return Value(t.shape, tuple(layer.unsqueeze(-1) for layer in x.layers))


@rule(aten.diff.default)
def diff(
    t: Trace,
    x: Value,
    times: int = 1,
    dim: int = -1,
    before: Value | None = None,
    after: Value | None = None,
) -> Value:
    """Neighbours along `dim` are subtracted, so these stay; along the others all parts meet.

    x (2, 5, 8) along dim 1 -> (2, 4, 8): channel 3 stays channel 3.
    """
    axis = dim % len(x.shape)
    parts = [numbered(t, part, (axis,)) for part in (x, before, after) if part is not None]
    return t.settle(Value(t.shape, t.meet(*parts).layers))
