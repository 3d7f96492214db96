"""Integers that remember where they come from, so that a size can be traced to an attribute.

A `Tagged` is an `int` that carries the expression it was computed by: attributes of modules, and
sizes read from tensors. Python code that adds, multiplies and divides it computes the same number
as before, and the result knows its expression. Where an expression ends up as the argument of an
operator, it says which attributes decide that argument.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import SupportsIndex, TypeAlias, cast


@dataclass(frozen=True, slots=True)
class Place:
    """One integer of the user's model: attribute (an entry of it) of a module, or below it.

    `layers.0.attn`, `num_heads`, None; `norm`, `normalized_shape`, 0; `encoder`,
    `config.hidden_size`, None.
    """

    module: str
    attribute: str
    entry: int | None = None

    def __str__(self) -> str:
        name = f"{self.module}.{self.attribute}" if self.module else self.attribute
        return name if self.entry is None else f"{name}[{self.entry}]"


@dataclass(frozen=True, slots=True)
class Known:
    """A number whose value after surgery is known: a size of a tensor, or one in the code."""

    after: int


@dataclass(frozen=True, slots=True)
class Combined:
    """left op right, e.g. num_heads * head_dim."""

    apply: Callable[[int, int], int]
    left: Expression
    right: Expression


Expression: TypeAlias = "Place | Known | Combined"
Values: TypeAlias = Mapping[Place, int]


def evaluate(expression: Expression, values: Values) -> int:
    """What an expression is worth when attributes have these values.

    Raises ZeroDivisionError where it divides by one that is 0.
    """
    match expression:
        case Place():
            return values[expression]
        case Known():
            return expression.after
        case Combined():
            left = evaluate(expression.left, values)
            return expression.apply(left, evaluate(expression.right, values))


def places(expression: Expression) -> frozenset[Place]:
    """The attributes that an expression reads."""
    match expression:
        case Place():
            return frozenset((expression,))
        case Known():
            return frozenset()
        case Combined():
            return places(expression.left) | places(expression.right)


_SIGNS = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//"}


def spelled(expression: Expression) -> str:
    """An expression for people: sizes as what they are after surgery, `48 // attn.num_heads`."""
    if not isinstance(expression, Combined):
        return str(expression.after if isinstance(expression, Known) else expression)
    if not places(expression):
        return str(evaluate(expression, {}))
    sign = _SIGNS.get(expression.apply, "%")
    return f"{spelled(expression.left)} {sign} {spelled(expression.right)}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The code compared two integers, in whatever way, and went on by the answer."""

    left: Expression
    right: Expression
    were_equal: bool


@dataclass(slots=True)
class Log:
    """Comparisons made so far, each once, in order."""

    comparisons: dict[Comparison, None] = field(default_factory=dict)


class Tagged(int):
    """An int with the expression it was computed by; behaves as the int it is."""

    expression: Expression
    log: Log

    @classmethod
    def of(cls, value: int, expression: Expression, log: Log) -> Tagged:
        """`value` (in the dense model), computed by `expression`."""
        made = cls(value)
        made.expression = expression
        made.log = log
        return made

    def _with(
        self, apply: Callable[[int, int], int], other: object, *, swapped: bool = False
    ) -> Tagged:
        if not isinstance(other, int):
            return cast("Tagged", NotImplemented)
        mine: tuple[int, Expression] = (int(self), self.expression)
        theirs: tuple[int, Expression] = (int(other), expression_of(other))
        (a, left), (b, right) = (theirs, mine) if swapped else (mine, theirs)
        return Tagged.of(apply(a, b), Combined(apply, left, right), self.log)

    def _compare(self, holds: Callable[[int, int], bool], other: object) -> bool:
        if not isinstance(other, int):
            return cast("bool", NotImplemented)
        mine, theirs = int(self), int(other)
        seen = Comparison(self.expression, expression_of(other), mine == theirs)
        self.log.comparisons.setdefault(seen)
        return holds(mine, theirs)

    def __add__(self, other: int) -> Tagged:
        return self._with(operator.add, other)

    def __radd__(self, other: int) -> Tagged:
        return self._with(operator.add, other, swapped=True)

    def __sub__(self, other: int) -> Tagged:
        return self._with(operator.sub, other)

    def __rsub__(self, other: int) -> Tagged:
        return self._with(operator.sub, other, swapped=True)

    def __mul__(self, other: int) -> Tagged:
        return self._with(operator.mul, other)

    def __rmul__(self, other: int) -> Tagged:
        return self._with(operator.mul, other, swapped=True)

    def __floordiv__(self, other: int) -> Tagged:
        return self._with(operator.floordiv, other)

    def __rfloordiv__(self, other: int) -> Tagged:
        return self._with(operator.floordiv, other, swapped=True)

    def __mod__(self, other: int) -> Tagged:
        return self._with(operator.mod, other)

    def __rmod__(self, other: int) -> Tagged:
        return self._with(operator.mod, other, swapped=True)

    def __divmod__(self, other: int) -> tuple[int, int]:
        return self // other, self % other

    def __neg__(self) -> Tagged:
        return self._with(operator.sub, 0, swapped=True)

    def __eq__(self, other: object) -> bool:
        return self._compare(operator.eq, other)

    def __ne__(self, other: object) -> bool:
        return self._compare(operator.ne, other)

    def __lt__(self, other: int) -> bool:
        return self._compare(operator.lt, other)

    def __le__(self, other: int) -> bool:
        return self._compare(operator.le, other)

    def __gt__(self, other: int) -> bool:
        return self._compare(operator.gt, other)

    def __ge__(self, other: int) -> bool:
        return self._compare(operator.ge, other)

    __hash__ = int.__hash__

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type[int], tuple[int]]:
        """A copy, or a pickle, is a plain int: the tag is of one run."""
        return int, (int(self),)


def expression_of(value: int) -> Expression:
    """The expression of a tagged integer; any other is a number in the code."""
    return value.expression if isinstance(value, Tagged) else Known(int(value))
