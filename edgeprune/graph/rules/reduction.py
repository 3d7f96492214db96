"""Sums, means, extremes and softmax over an axis."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.observe import TensorFact
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten


def dims_of(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Dims from 0 on, sorted: -1 of 3 -> (2,); all of them where none is named."""
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return tuple(range(ndim))
    numbers = [dim] if isinstance(dim, int) else list(dim)
    return tuple(sorted(number % ndim for number in numbers)) if ndim else ()


def reduced(x: Value, layers: list[torch.Tensor], dims: tuple[int, ...], keep: bool) -> Value:
    """Value and layers after `dims` went (or became 1)."""
    shape = [1 if d in dims else size for d, size in enumerate(x.shape)]
    narrowed = [_at_first(layer, dims) for layer in layers]
    if not keep:
        shape = [size for d, size in enumerate(x.shape) if d not in dims]
        left = [d for d in range(len(x.shape)) if d not in dims]
        narrowed = [layer.reshape([layer.shape[d] for d in left]) for layer in narrowed]
    return Value(tuple(shape), tuple(narrowed))


def _at_first(layer: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    for dim in dims:
        layer = layer.narrow(dim, 0, 1)
    return layer


@rule(aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim)
def additive(
    t: Trace,
    x: Value,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    **kwargs: object,
) -> Value:
    """Summing over a labelled axis reads it; a removed position adds nothing.

    x (2, 8), sum over dim 1 -> (2,): no labels left, x's channels stay removable. A mean keeps
    the dense count 8 (surgery writes it out). Labels that also vary elsewhere (heads x head dim,
    summed over head dim) are tied along the summed axis: whole heads go.
    """
    dims = dims_of(dim, len(x.shape))
    passing = []
    for layer in x.layers:
        inside = [d for d in varying(layer) if d in dims]
        outside = [d for d in varying(layer) if d not in dims]
        if inside and outside:
            t.tie(layer, tuple(inside), "summed over this axis")
        if inside and not outside:
            t.read(0, layer)
        else:
            passing.append(layer)
    return t.settle(reduced(x, passing, dims, keepdim))


@rule(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default)
def extreme(
    t: Trace, x: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False
) -> Value:
    """A removed position is heard as 0, so the largest is that of the kept ones and 0.

    x (2, 3), [-3, -4, 2], amax over dim 1 -> 2; without position 2 -> 0 (surgery writes the 0 out),
    as a spatial attention over the channels' maximum hears it. Otherwise as `additive`.
    """
    return additive(t, x, dim, keepdim)


def values_read(node: fx.Node) -> fx.Node | None:
    """The one result that is read of `max(x, dim)`, its values; None where its places are too."""
    read = [user for user in node.users if user.target is not operator.getitem or user.users]
    if len(read) == 1 and read[0].target is operator.getitem and read[0].args[1] == 0:
        return read[0]
    return None


@rule(
    aten.argmax.default,
    aten.argmin.default,
    aten.prod.dim_int,
    aten.logsumexp.default,
)
def selective(
    t: Trace,
    x: Value,
    dim: int | Sequence[int] | None = None,
    *args: object,
    **kwargs: object,
) -> Value:
    """A statistic that a removed position would change: the axis stays or goes as a whole.

    x (2, 4, 16), amax over dim 2 with labels (head, dim): whole heads stay removable.
    """
    return _selected(t, x, dims_of(dim, len(x.shape)), len(t.shape) == len(x.shape))


def _selected(t: Trace, x: Value, dims: tuple[int, ...], keep: bool) -> Value:
    why = "a statistic is taken over this axis"
    passing = []
    for layer in x.layers:
        if set(varying(layer)) <= set(dims):
            t.labels.pin(layer, t.cause(why))
        else:
            t.tie(layer, dims, why)
            passing.append(layer)
    return t.settle(reduced(x, passing, dims, keep))


@rule(
    aten.max.dim,
    aten.min.dim,
    aten.median.dim,
    aten.nanmedian.dim,
    aten.mode.default,
    aten.kthvalue.default,
    aten.topk.default,
    aten.sort.default,
    aten.sort.stable,
)
def ranked(t: Trace, x: Value, *args: object, **kwargs: object) -> tuple[Value, ...]:
    """Values chosen along an axis, and the places they were found at: like `selective`, twice.

    x (2, 8, 30), max over dim 2 -> values and places (2, 8): channel 3 stays channel 3. A maximum
    or minimum whose places nobody reads is an `extreme`.
    """
    names = [argument.name for argument in t.target._schema.arguments[1:]]
    given = dict(zip(names, args, strict=False)) | kwargs
    dim = given.get("dim", -1)
    fact = t.facts[t.node.name]
    if not isinstance(dim, int) or not isinstance(fact, tuple):
        raise TypeError(f"{t.target} over dim {dim!r} does not result in two tensors")
    shapes = [member.shape for member in fact if isinstance(member, TensorFact)]
    kept = len(shapes[0]) == len(x.shape)
    dims = dims_of(dim, len(x.shape))
    if t.target in (aten.max.dim, aten.min.dim) and values_read(t.node) is not None:
        chosen = extreme(t, x, dims, kept)
    else:
        chosen = _selected(t, x, dims, kept)
    return tuple(Value(shape, chosen.layers) for shape in shapes)


@rule(aten.aminmax.default)
def both_ends(
    t: Trace, x: Value, *, dim: int | None = None, keepdim: bool = False
) -> tuple[Value, ...]:
    """The smallest and the largest: a statistic like `selective`, twice.

    x (2, 8, 30), over dim 2 -> two of (2, 8): channel 3 stays channel 3.
    """
    chosen = _selected(t, x, dims_of(dim, len(x.shape)), keepdim)
    return chosen, chosen


@rule(aten.linalg_vector_norm.default)
def vector_norm(
    t: Trace,
    x: Value,
    order: float = 2,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    **kwargs: object,
) -> Value:
    """A removed position adds nothing to a norm of positive order: it is summed like `additive`.

    x (2, 3), [3, 4, 12], order 2 over dim 1 -> 13; without position 2 -> 5, as if it were 0.
    Orders of 0 and below are statistics like amin.
    """
    if order > 0:
        return additive(t, x, dim, keepdim)
    return selective(t, x, dim)


@rule(
    aten.norm.Scalar,
    aten.norm.ScalarOpt_dim,
    aten.norm.ScalarOpt_dim_dtype,
    aten.frobenius_norm.dim,
    aten.linalg_norm.default,
    aten.linalg_norm.ord_str,
    aten.linalg_matrix_norm.default,
    aten.linalg_matrix_norm.str_ord,
)
def norm(t: Trace, x: Value, *args: object, **kwargs: object) -> Value:
    """Other names of `vector_norm`; the matrix norms but Frobenius' are statistics like amin.

    x (2, 8), linalg_norm over dim 1 -> (2,): as vector_norm of order 2. linalg_matrix_norm of
    (2, 8, 8) with "nuc": both axes are pinned.
    """
    names = [argument.name for argument in t.target._schema.arguments[1:]]
    given = dict(zip(names, args, strict=False)) | kwargs
    order = given.get("p", given.get("ord"))
    matrix = t.target in (aten.linalg_matrix_norm.default, aten.linalg_matrix_norm.str_ord)
    dim = given.get("dim", [-2, -1] if matrix else None)
    chosen = dim if isinstance(dim, int | list | tuple) else None
    dims = dims_of(chosen, len(x.shape))
    keep = bool(given.get("keepdim", False))
    matrix |= order is not None and len(dims) == 2 and "linalg" in t.target._schema.name
    if order in (None, "fro") or (isinstance(order, int | float) and order > 0 and not matrix):
        return additive(t, x, dims, keep)
    return _selected(t, x, dims, keep)


@rule(
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.cumsum.default,
)
def along(t: Trace, x: Value, dim: int, *args: object, **kwargs: object) -> Value:
    """Every position along `dim` depends on the others: tied; other axes are not touched.

    x (2, 4, 9, 9) with labels along heads (dim 1), softmax over dim 3: heads stay removable.
    """
    for layer in x.layers:
        t.tie(layer, (dim % len(x.shape),), "softmax or running sum over this axis")
    return x
