"""Several tensors laid side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.registry import rule
from edgeprune.graph.rules.movement import collapse
from edgeprune.graph.trace import Trace

aten = torch.ops.aten


@rule(aten.cat.default, aten.concat.default)
def cat(t: Trace, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Along `dim` labels are laid side by side; along every other dim the operands meet.

    a (2, 3) labels 1..3, b (2, 2) labels 8, 9, dim 1 -> 1, 2, 3, 8, 9. An operand without labels
    along `dim` fills its place with 0: those positions stay.
    """
    # torch.cat ignores legacy empty tensors of shape (0,).
    parts = [value for value in tensors if value.shape != (0,)]
    axis = dim % len(parts[0].shape)
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    side_by_side = _lay(parts, axis)
    across = t.meet(*[_without(part, axis) for part in parts])
    layers = tuple(layer for layer in across.layers)
    return t.settle(Value(tuple(shape), (*layers, *side_by_side)))


def _without(part: Value, axis: int) -> Value:
    """The operand with `axis` at size 1: only what the operands must agree on."""
    shape = tuple(1 if dim == axis else size for dim, size in enumerate(part.shape))
    layers = tuple(layer for layer in part.layers if layer.shape[axis] == 1)
    return Value(shape, layers)


def _lay(parts: Sequence[Value], axis: int) -> list[torch.Tensor]:
    """One layer from those that vary along `axis`, 0 where an operand has none."""
    own = [[layer for layer in part.layers if layer.shape[axis] > 1] for part in parts]
    count = max((len(layers) for layers in own), default=0)
    laid = []
    for index in range(count):
        pieces = []
        for part, layers in zip(parts, own, strict=True):
            if index < len(layers):
                pieces.append(layers[index])
            else:
                size = [1] * len(part.shape)
                size[axis] = part.shape[axis]
                # A second layer that this operand lacks: repeat its first, so nothing is pinned
                # that its own layers do not pin already.
                pieces.append(layers[-1] if layers else torch.zeros(size, dtype=torch.int64))
        sizes = [max(p.shape[d] for p in pieces) for d in range(pieces[0].dim())]
        expanded = []
        for piece in pieces:
            target = list(sizes)
            target[axis] = piece.shape[axis]
            expanded.append(piece.expand(target))
        laid.append(collapse(torch.cat(expanded, dim=axis)))
    return laid


@rule(aten.stack.default)
def stack(t: Trace, tensors: Sequence[Value], dim: int = 0) -> Value:
    """A new dim; along all others the operands meet.

    a (2, 3), b (2, 3), dim 1 -> (2, 2, 3): a's and b's positions along dim 2 become one unit.
    """
    axis = dim % (len(tensors[0].shape) + 1)
    met = t.meet(*tensors)
    shape = (*met.shape[:axis], len(tensors), *met.shape[axis:])
    return Value(shape, tuple(layer.unsqueeze(axis) for layer in met.layers))


@rule(aten.glu.default)
def glu(t: Trace, x: Value, dim: int = -1) -> Value:
    """First half times the sigmoid of the second: position i meets position i + n / 2.

    x (2, 8) labels 1..8 -> (2, 4): labels 1 and 5 become one unit, and so on.
    """
    axis = dim % len(x.shape)
    half = x.shape[axis] // 2

    def part(start: int) -> Value:
        shape = tuple(half if d == axis else size for d, size in enumerate(x.shape))
        layers = tuple(
            layer.narrow(axis, start, half) if axis in varying(layer) else layer
            for layer in x.layers
        )
        return Value(shape, layers)

    return t.meet(part(0), part(half))
