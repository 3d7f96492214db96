"""Reading a table by indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.observe import TensorFact
from edgeprune.graph.registry import Outcome, rule
from edgeprune.graph.rules.movement import collapse
from edgeprune.graph.rules.scattering import numbered, places
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

_COPIES = (
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)


@rule(aten.embedding.default)
def embedding(t: Trace, table: Value, indices: Value, *args: object) -> Value:
    """Rows are chosen by data and stay; columns are the width of the result.

    table (100, 16), indices (2, 7) -> (2, 7, 16): the result's dim 2 carries the table's dim 1.
    """
    ndim = len(indices.shape)
    layers = []
    for layer in table.layers:
        if layer.shape[0] > 1:
            t.labels.pin(layer, t.cause("rows are chosen by data", by_nature=True))
        else:
            layers.append(layer.reshape((1,) * ndim + (-1,)))
    # An index table of the model itself has positions of its own.
    layers += [layer.unsqueeze(-1) for layer in indices.layers]
    return t.settle(Value((*indices.shape, table.shape[1]), tuple(layers)))


@rule(aten.embedding_bag.default, aten.embedding_bag.padding_idx)
def embedding_bag(
    t: Trace, table: Value, indices: Value, *args: object, **kwargs: object
) -> Outcome:
    """Rows chosen by data are summed, averaged or compared column by column.

    table (100, 16), bags (2,) -> (2, 16) with the table's columns, two tensors of counts, and for
    a maximum the row of each number.
    """
    for value in (indices, *args, *kwargs.values()):
        if isinstance(value, Value):
            t.pin(value, "its positions are read by number", by_nature=True)
    fact = t.facts[t.node.name]
    if not isinstance(fact, tuple):
        raise TypeError(f"{t.target} does not result in four tensors")
    width = numbered(t, table, (0,)).layers
    shapes = [member.shape for member in fact if isinstance(member, TensorFact)]
    return tuple(Value(shape, width if len(shape) == 2 else ()) for shape in shapes)


@rule(aten.index_select.default)
def index_select(t: Trace, x: Value, dim: int, indices: Value) -> Value:
    """With indices that the model itself holds, positions move as the indices say.

    x (2, 4) labels 1..4, indices (3, 0) -> (2, 2) labels 4, 1. Indices computed from data: as
    `index`.
    """
    axis = dim % len(x.shape)
    source = constant_behind(t.node.args[2])
    constant = None if source is None else t.constant(source)
    if constant is None:
        return _by_data(t, x, (None,) * axis + (indices,))
    return _by_constant(t, x, axis, indices, constant)


@rule(aten.index.Tensor)
def index(t: Trace, x: Value, indices: Sequence[Value | None]) -> Value:
    """Indexed dims of x stay; dims that are not indexed keep their labels.

    table (169, 4) indexed by (2401,) along dim 0 -> (2401, 4): the heads along dim 1 survive.
    The indices' own positions are pinned: they are laid out by numbers, not by units. A mask of
    booleans takes as many dims as it has: x (2, 12, 64)[mask (2, 12)] -> (5, 64).
    One list of numbers that the model holds (`y[:, perm]`) is as `index_select`.
    """
    indexed = [dim for dim, value in enumerate(indices) if value is not None]
    written = t.node.args[1]
    if len(indexed) == 1 and isinstance(written, list | tuple):
        axis = indexed[0]
        source = constant_behind(written[axis])
        constant = None if source is None else t.constant(source)
        if constant is not None and constant.dim() == 1:
            return _by_constant(t, x, axis, indices[axis], constant)
    return _by_data(t, x, indices)


def constant_behind(argument: object) -> fx.Node | None:
    """The node that reads a constant, seen through the copies that export puts around it."""
    while isinstance(argument, fx.Node) and argument.target in _COPIES:
        argument = argument.args[0]
    return argument if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def chosen_positions(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Numbers from 0 up: a mask by where it is true, negative numbers from the end.

    [True, False, True] -> 0, 2; [-1, 0] of size 8 -> 7, 0.
    """
    if indices.dtype is torch.bool:
        return indices.nonzero().reshape(-1)
    return indices.long() % size


def _by_constant(
    t: Trace, x: Value, axis: int, indices: Value | None, constant: torch.Tensor
) -> Value:
    if indices is not None:
        t.pin(indices, "its positions are read by number", by_nature=True)
    positions = chosen_positions(constant, x.shape[axis])
    layers = tuple(
        layer if layer.shape[axis] == 1 else layer.index_select(axis, positions)
        for layer in x.layers
    )
    return t.settle(Value(t.shape, tuple(collapse(layer) for layer in layers)))


def _by_data(t: Trace, x: Value, indices: Sequence[Value | None]) -> Value:
    dims, probe = places(t, x, indices)
    for value in indices:
        if value is not None:
            t.pin(value, "its positions are read by number", by_nature=True)
    layers = []
    for layer in x.layers:
        if any(dim in dims for dim in varying(layer)):
            t.labels.pin(layer, t.cause("indexed by number along this axis"))
            continue
        # The layer is constant along the indexed dims: index 0 picks what any index picks.
        layers.append(collapse(aten.index.Tensor(layer.expand(x.shape), probe)))
    return t.settle(Value(t.shape, tuple(layers)))
