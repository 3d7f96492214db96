"""Tensors made in the graph: their sizes are written there and can be rewritten."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from edgeprune.graph.labels import Value
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten


@rule(
    aten.empty.memory_format,
    aten.full.default,
    aten.ones.default,
    aten.zeros.default,
)
def filled(t: Trace, size: Sequence[int], *args: object, **kwargs: object) -> Value:
    """Fresh labels along each dim whose size is written as a number.

    zeros(2, 8) -> labels along both dims; adding x (2, 8) joins dim 1 with x's channels.
    """
    return _created(t, size, 0)


@rule(
    aten.new_empty.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
)
def filled_as(t: Trace, x: Value, size: Sequence[int], *args: object, **kwargs: object) -> Value:
    """As `filled`; x gives dtype and device only: new_zeros(x, (2, 8)) has labels of its own."""
    return _created(t, size, 1)


def _created(t: Trace, size: Sequence[int], position: int) -> Value:
    written = t.node.args[position]
    shape = tuple(int(number) for number in size)
    symbolic = (
        {dim for dim, number in enumerate(written) if _is_size(number)}
        if isinstance(written, list | tuple)
        else set()
    )
    return t.created(Value(shape), tuple(d for d in range(len(shape)) if d not in symbolic))


def _is_size(number: object) -> bool:
    """Whether a written number is the size of another value; batch x 12 heads is not, it can go."""
    return isinstance(number, fx.Node) and number.target is aten.sym_size.int


@rule(
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.linspace.default,
    aten.scalar_tensor.default,
)
def counted(t: Trace, *args: object, **kwargs: object) -> Value:
    """Values that depend on their position: no labels, so whatever meets them full-size is pinned.

    arange(8) + x (2, 8): removing x's channel 3 would shift the numbers of channels 4-7.
    """
    return Value(t.shape)
