"""einsum: contractions whose letters the user wrote, one operand after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from edgeprune.graph.contraction import Equation, Heard, contract
from edgeprune.graph.labels import Value, varying
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

_TENSORS = 1
"""Position of the list of tensors among einsum's arguments."""

_SPARE = "".join(map(chr, range(0x3B1, 0x3C9)))
"""Letters for what an ellipsis stands for; einsum itself takes Latin ones only."""


@dataclass(frozen=True, slots=True)
class Terms:
    """An equation with its ellipses spelled out: the letters of each operand and of the result."""

    operands: tuple[str, ...]
    result: str


@dataclass(frozen=True, slots=True, eq=False)
class _Operand:
    """One tensor with distinct letters, and where each of them lies in the written operand."""

    value: Value
    letters: str
    heard: Heard


@rule(aten.einsum.default)
def einsum(t: Trace, equation: str, tensors: tuple[Value, ...], path: object = None) -> Value:
    """Operands are contracted from left to right; a letter of one alone is summed there.

    "bhid,bhjd->bhij" is the scores of attention, "...c,oc->...o" a linear layer: of x (2, 5, 8) and
    w (6, 8), x's 8 positions are joined with w's dim 1, and the result (2, 5, 6) carries the labels
    of w's dim 0. "bii->bi" joins rows with columns. A size of 1 broadcasts.
    """
    terms = terms_of(equation, tuple(len(value.shape) for value in tensors))
    full = _sizes(terms, tensors)
    operands = [
        _distinct(t, index, value, letters, full)
        for index, (value, letters) in enumerate(zip(tensors, terms.operands, strict=True))
    ]
    done = _summed(t, operands[0], _wanted(terms, operands[1:]))
    for index, operand in enumerate(operands[1:], start=2):
        wanted = _wanted(terms, operands[index:])
        alone = _summed(t, operand, wanted | set(done.letters))
        letters = "".join(dict.fromkeys(done.letters + alone.letters))
        result = "".join(c for c in letters if c in wanted)
        # The newest operand is masked: the one on the other side may be a product already.
        both = Equation(alone.letters, done.letters, result)
        done = replace(
            alone, value=contract(t, alone.value, done.value, both, alone.heard), letters=result
        )
    order = [done.letters.index(c) if c in done.letters else None for c in terms.result]
    layers = tuple(_ordered(layer, order) for layer in done.value.layers)
    return t.settle(Value(t.shape, layers))


def terms_of(text: str, ndims: tuple[int, ...]) -> Terms:
    """`"...i,ij"` for operands of 3 and 2 dims -> two letters for the dots, then i; ij; and j.

    Without an arrow the result is the dots, then the letters that occur once, in order.
    """
    inputs, arrow, result = text.replace(" ", "").partition("->")
    parts = inputs.split(",")
    dots = [n - len(part.replace("...", "")) for part, n in zip(parts, ndims, strict=True)]
    widest = max((d for part, d in zip(parts, dots, strict=True) if "..." in part), default=0)
    spare = _SPARE[:widest]
    operands = tuple(
        part.replace("...", spare[widest - count :]) if "..." in part else part
        for part, count in zip(parts, dots, strict=True)
    )
    if not arrow:
        written = inputs.replace(",", "").replace("...", "")
        result = "..." + "".join(sorted(c for c in set(written) if written.count(c) == 1))
    return Terms(operands, result.replace("...", spare))


def _sizes(terms: Terms, tensors: tuple[Value, ...]) -> dict[str, int]:
    """Every letter's size: the largest, as einsum broadcasts a size of 1."""
    sizes: dict[str, int] = {}
    for letters, value in zip(terms.operands, tensors, strict=True):
        for letter, size in zip(letters, value.shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return sizes


def _wanted(terms: Terms, later: list[_Operand]) -> set[str]:
    """Letters that the result or an operand still to come has."""
    return set(terms.result).union(*(operand.letters for operand in later))


def _distinct(t: Trace, index: int, value: Value, letters: str, full: dict[str, int]) -> _Operand:
    """An operand without broadcast dims, and with a repeated letter's dims laid into one."""
    dims = {letter: letters.index(letter) for letter in letters}
    kept = [
        letter
        for letter in dict.fromkeys(letters)
        if any(value.shape[d] == full[letter] for d, other in enumerate(letters) if other == letter)
    ]
    for letter in kept:
        value = _diagonal(t, value, [d for d, other in enumerate(letters) if other == letter])
    places = [dims[letter] for letter in kept]
    shape = tuple(value.shape[d] for d in places)
    layers = tuple(_ordered(layer, places) for layer in value.layers)
    heard = Heard(_TENSORS, dims, len(value.shape), index)
    return _Operand(Value(shape, layers), "".join(kept), heard)


def _diagonal(t: Trace, value: Value, dims: list[int]) -> Value:
    """Dims of one letter, read along their diagonal: position i of all of them is one unit.

    Labels then lie along the first dim; the others have size 1.
    """
    if len(dims) == 1:
        return value
    why = "read along a diagonal"
    sides: dict[int, list[torch.Tensor]] = {dim: [] for dim in dims}
    passing = []
    for layer in value.layers:
        inside = set(varying(layer)) & set(dims)
        if not inside:
            passing.append(layer)
        elif len(varying(layer)) == 1:
            sides[inside.pop()].append(layer.reshape(-1))
        else:
            t.labels.pin(layer, t.cause(why))
    parts = [Value((value.shape[dim],), tuple(side)) for dim, side in sides.items()]
    met = t.meet(*parts, reason=why)
    shape = [1 if d in dims[1:] else size for d, size in enumerate(value.shape)]
    shape[dims[0]] = met.shape[0]
    spread = [1] * len(shape)
    spread[dims[0]] = -1
    along = tuple(layer.reshape(spread) for layer in met.layers)
    return Value(tuple(shape), (*passing, *along))


def _summed(t: Trace, operand: _Operand, wanted: set[str]) -> _Operand:
    """The operand after the sum over letters that nothing else has, which reads it."""
    alone = [d for d, letter in enumerate(operand.letters) if letter not in wanted]
    if not alone:
        return operand
    passing = []
    for layer in operand.value.layers:
        inside = tuple(d for d in varying(layer) if d in alone)
        if inside and set(varying(layer)) > set(inside):
            t.tie(layer, inside, "summed over this axis")
        elif len(inside) > 1:
            t.tie(layer, inside[1:], "summed over this axis")
        if inside and set(varying(layer)) == set(inside):
            operand.heard.read(
                t, operand.letters[inside[0]], _narrow(layer, inside[1:]).reshape(-1)
            )
        else:
            passing.append(_narrow(layer, inside))
    left = [d for d in range(len(operand.letters)) if d not in alone]
    shape = tuple(operand.value.shape[d] for d in left)
    layers = tuple(_ordered(layer, left) for layer in passing)
    letters = "".join(operand.letters[d] for d in left)
    return replace(operand, value=Value(shape, layers), letters=letters)


def _narrow(layer: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    for dim in dims:
        layer = layer.narrow(dim, 0, 1)
    return layer


def _ordered(layer: torch.Tensor, places: list[int] | list[int | None]) -> torch.Tensor:
    """The layer with its dims at `places`, in that order (None = a new dim of size 1)."""
    known = [place for place in places if place is not None]
    rest = [d for d in range(layer.dim()) if d not in known]
    sizes = [1 if place is None else layer.shape[place] for place in places]
    return layer.permute(known + rest).reshape(sizes)
