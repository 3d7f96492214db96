"""Reading a table by indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.registry import rule
from edgeprune.graph.rules.movement import collapse
from edgeprune.graph.trace import Trace

aten = torch.ops.aten


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


@rule(aten.index_select.default)
def index_select(t: Trace, x: Value, dim: int, indices: Value) -> Value:
    """With indices that the model itself holds, positions move as the indices say.

    x (2, 4) labels 1..4, indices (3, 0) -> (2, 2) labels 4, 1. Indices computed from data: as
    `index`.
    """
    constant = t.constant(t.node.args[2])
    if constant is None:
        return index(t, x, (None,) * (dim % len(x.shape)) + (indices,))
    layers = tuple(
        layer if layer.shape[dim] == 1 else layer.index_select(dim, constant) for layer in x.layers
    )
    return t.settle(Value(t.shape, tuple(collapse(layer) for layer in layers)))


@rule(aten.index.Tensor)
def index(t: Trace, x: Value, indices: Sequence[Value | None]) -> Value:
    """Indexed dims of x stay; dims that are not indexed keep their labels.

    table (169, 4) indexed by (2401,) along dim 0 -> (2401, 4): the heads along dim 1 survive.
    The indices' own positions are pinned: they are laid out by numbers, not by units.
    """
    indexed = [dim for dim, value in enumerate(indices) if value is not None]
    for value in indices:
        if value is not None:
            t.pin(value, "its positions are read by number", by_nature=True)
    layers = []
    for layer in x.layers:
        if any(dim in indexed for dim in varying(layer)):
            t.labels.pin(layer, t.cause("indexed by number along this axis"))
            continue
        # The layer is constant along the indexed dims: index 0 picks what any index picks.
        zeros = [
            None if value is None else torch.zeros(value.shape, dtype=torch.int64)
            for value in indices
        ]
        layers.append(collapse(aten.index.Tensor(layer.expand(x.shape), zeros)))
    return t.settle(Value(t.shape, tuple(layers)))
