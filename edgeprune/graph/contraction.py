"""Contraction of two tensors over shared axes: linear, matmul and attention are this one rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.trace import Trace


@dataclass(frozen=True, slots=True)
class Equation:
    """Dims by letter, as in einsum: `Equation("bik", "bkj", "bij")`.

    A letter in both operands and not in the result is contracted; in both and in the result, a
    batch letter; in one operand and the result, free.
    """

    left: str
    right: str
    result: str

    @property
    def contracted(self) -> str:
        """Letters summed over."""
        return "".join(c for c in self.left if c in self.right and c not in self.result)

    @property
    def batch(self) -> str:
        """Letters that both operands and the result have."""
        return "".join(c for c in self.result if c in self.left and c in self.right)


@dataclass(frozen=True, slots=True)
class Heard:
    """Which argument silence masks: number `operand` (of a list, its `member`), with `ndim` dims.

    `dims` says where each letter lies in it.
    """

    operand: int
    dims: Mapping[str, int]
    ndim: int
    member: int = 0

    def read(self, t: Trace, letter: str, layer: torch.Tensor) -> None:
        """The current node sums over `letter`, with labels `layer` of shape (size,)."""
        shape = [1] * self.ndim
        shape[self.dims[letter]] = layer.numel()
        t.read(self.operand, layer.reshape(shape), self.member)


def contract(
    t: Trace, left: Value, right: Value, equation: Equation, operand: int | Heard
) -> Value:
    """Positions along a contracted axis become one unit in both operands; the rest passes.

    x (2, 5, 8) "bik", W (16, 8) "jk" -> "bij": x's channel 3 and W[:, 3] become one unit, the
    result's dim 2 carries W's dim 0. Heads, q (2, 4, 5, 8) "bhik" and k "bhjk" with labels along
    h and k: whole heads first, so k is tied and the result carries the head.

    `operand` is the argument number of `left` at the current node: the edge that silence masks.
    """
    heard = operand
    if isinstance(heard, int):
        heard = Heard(heard, {c: d for d, c in enumerate(equation.left)}, len(equation.left))
    heads = _heads(t, left, right, equation)
    one = _sort(t, left, equation.left, equation, heads)
    two = _sort(t, right, equation.right, equation, heads)
    for letter in equation.contracted:
        size = left.shape[equation.left.index(letter)]
        mine = Value((size,), tuple(one.inner.get(letter, [])))
        yours = Value((size,), tuple(two.inner.get(letter, [])))
        t.meet(mine, yours, reason="its width is that of data, or of a fixed reader")
        for layer in mine.layers:
            heard.read(t, letter, layer)
    return t.meet(
        _place(one, left, equation.left, equation.result),
        _place(two, right, equation.right, equation.result),
    )


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Layers of one operand: `inner` along a contracted letter as (size,), `outer` passing on."""

    inner: dict[str, list[torch.Tensor]]
    outer: list[torch.Tensor]


def _heads(t: Trace, left: Value, right: Value, equation: Equation) -> str:
    """Batch letters whose positions, as a whole, are the units of what is contracted.

    Usually those along which both operands really have positions of their own. Query heads that
    share one key (of size 1, or copies of it) lose columns with it instead.
    """
    sides = ((left, equation.left), (right, equation.right))
    boxes = [
        layer
        for value, letters in sides
        for layer in value.layers
        if {"batch", "summed"} <= {_part(letters[d], equation) for d in varying(layer)}
    ]
    if not boxes:
        return equation.batch
    shared = "".join(c for c in equation.batch if all(_own(t, *s, c, equation) for s in sides))
    covered = shared and all(
        any(letters[d] in shared for d in varying(layer))
        for value, letters in sides
        for layer in boxes
        if any(layer is own for own in value.layers)
    )
    if t.prefers_heads(boxes[0], usually=bool(covered)):
        return equation.batch
    return ""


def _part(letter: str, equation: Equation) -> str:
    if letter in equation.contracted:
        return "summed"
    return "batch" if letter in equation.batch else "free"


def _own(t: Trace, value: Value, letters: str, letter: str, equation: Equation) -> bool:
    """Whether an operand has several positions along a letter, and not just copies of one."""
    dim = letters.index(letter)
    if value.shape[dim] == 1:
        return False
    along = [layer for layer in value.layers if layer.shape[dim] > 1]
    summed = [
        layer
        for layer in value.layers
        if layer.shape[dim] == 1 and any(letters[d] in equation.contracted for d in varying(layer))
    ]
    return not (along and summed and all(t.labels.is_created(layer) for layer in along))


def _sort(t: Trace, value: Value, letters: str, equation: Equation, heads: str) -> _Sorted:
    inner: dict[str, list[torch.Tensor]] = {}
    outer: list[torch.Tensor] = []
    for layer in value.layers:
        dims = varying(layer)
        summed = [d for d in dims if letters[d] in equation.contracted]
        if not summed:
            outer.append(layer)
        elif any(letters[d] in heads for d in dims):
            # Whole heads first: what is summed over is tied within each head.
            t.tie(layer, tuple(summed), "contracted within a head")
            for dim in summed:
                layer = layer.narrow(dim, 0, 1)
            outer.append(layer)
        else:
            others = tuple(d for d in dims if d != summed[0])
            t.tie(layer, others, "read by one weight")
            for dim in others:
                layer = layer.narrow(dim, 0, 1)
            inner.setdefault(letters[summed[0]], []).append(layer.reshape(-1))
    return _Sorted(inner, outer)


def _place(layers: _Sorted, value: Value, letters: str, result: str) -> Value:
    """The operand in the result's dims: size 1 where it has no such letter."""
    order = [letters.index(c) for c in result if c in letters]
    rest = [d for d in range(len(letters)) if d not in order]
    shape = tuple(value.shape[letters.index(c)] if c in letters else 1 for c in result)
    placed = []
    for layer in layers.outer:
        moved = layer.permute(order + rest).reshape([layer.shape[d] for d in order])
        full = [layer.shape[letters.index(c)] if c in letters else 1 for c in result]
        placed.append(moved.reshape(full))
    return Value(shape, tuple(placed))
