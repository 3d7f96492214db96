"""einsum of two tensors: a contraction whose letters the user wrote."""

from __future__ import annotations

import torch

from edgeprune.graph.contraction import Equation, contract
from edgeprune.graph.labels import Value
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

_TENSORS = 1
"""Position of the list of tensors among einsum's arguments; silence masks its first member."""


@rule(aten.einsum.default)
def einsum(t: Trace, equation: str, tensors: tuple[Value, ...], path: object = None) -> Value:
    """Two operands, each letter once in each, nothing summed over one operand alone.

    "bhid,bhjd->bhij" is the scores of attention, "bic,oc->bio" a linear layer: of x (2, 5, 8) and
    w (6, 8), x's 8 positions are joined with w's dim 1, and the result (2, 5, 6) carries the labels
    of w's dim 0. Any other equation pins its operands.
    """
    letters = pair_of(equation)
    if letters is None or len(tensors) != 2 or not _of_one_size(letters, tensors):
        for value in tensors:
            t.pin(value, f"einsum {equation!r} is not a contraction of two tensors")
        return Value(t.shape)
    return contract(t, tensors[0], tensors[1], letters, _TENSORS)


def _of_one_size(letters: Equation, tensors: tuple[Value, ...]) -> bool:
    """Whether a letter of both operands has one size in both: einsum broadcasts a size of 1."""
    left = dict(zip(letters.left, tensors[0].shape, strict=True))
    right = dict(zip(letters.right, tensors[1].shape, strict=True))
    return all(left[letter] == right[letter] for letter in left.keys() & right.keys())


def pair_of(text: str) -> Equation | None:
    """`"bi, ij -> bj"` as an Equation; None where it says more than a contraction of two."""
    inputs, arrow, result = text.replace(" ", "").partition("->")
    left, comma, right = inputs.partition(",")
    if "." in text or "," in right or not comma:
        return None
    if not arrow:
        # Letters that occur once, in alphabetical order.
        result = "".join(sorted(c for c in set(left + right) if (left + right).count(c) == 1))
    once = all(len(set(part)) == len(part) for part in (left, right, result))
    alone = (set(left) ^ set(right)) - set(result)
    return Equation(left, right, result) if once and not alone else None
