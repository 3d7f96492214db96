"""One call of a torch function by the user's code, repeated on shapes alone.

A call is kept as its arguments with every tensor replaced by its shape before and after surgery,
and every integer by its expression. Repeated on the meta device with the shapes after surgery and
new values of the attributes, it says whether those values are right there: no table of operators
and of what their arguments mean is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch.utils import _pytree as pytree

from edgeprune.surgery.tagged import Expression, Place, Tagged, Values, evaluate, places

Shape: TypeAlias = tuple[int, ...]
Function: TypeAlias = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Ghost:
    """A tensor argument as its shapes; `after` is None where surgery's is not known."""

    before: Shape
    after: Shape | None
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Number:
    """A traced integer argument."""

    before: int
    expression: Expression


@dataclass(frozen=True, slots=True, eq=False)
class Count:
    """An integer argument that no shape betrays (the groups of a norm) must be `after`."""

    number: Expression
    after: int


@dataclass(eq=False)
class Call:
    """`results`: shape before and after of every tensor it gave, in order.

    `where` is the user's line, `node` the captured graph's node of the first result.
    """

    function: Function
    args: object
    results: tuple[tuple[Shape, Shape | None], ...]
    where: str
    node: str = ""
    count: Count | None = None
    _answers: dict[tuple[int, ...], bool] = field(default_factory=dict)
    _checkable: bool | None = None

    @property
    def name(self) -> str:
        """The function as a person knows it."""
        owner = getattr(self.function, "__self__", None)
        name = getattr(self.function, "__name__", str(self.function))
        return str(getattr(owner, "__name__", name)) if name == "__get__" else str(name)

    @functools.cached_property
    def numbers(self) -> tuple[Number, ...]:
        """The traced integers among the arguments."""
        leaves = pytree.tree_leaves(self.args)
        return tuple(leaf for leaf in leaves if isinstance(leaf, Number))

    @functools.cached_property
    def places(self) -> frozenset[Place]:
        """The attributes that decide its arguments."""
        return frozenset().union(*(places(number.expression) for number in self.numbers))

    @functools.cached_property
    def resized(self) -> tuple[tuple[int, int], ...]:
        """Sizes that change here, before and after, each once."""
        ghosts = [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Ghost)]
        pairs = [(ghost.before, ghost.after) for ghost in ghosts] + list(self.results)
        sizes = [
            pair
            for before, after in pairs
            if after is not None and len(before) == len(after)
            for pair in zip(before, after, strict=True)
        ]
        if self.count is not None:
            sizes += [(n.before, self.count.after) for n in self.numbers]
        return tuple(dict.fromkeys(pair for pair in sizes if pair[0] != pair[1]))

    def holds(self, values: Values) -> bool:
        """Whether the call gives the shapes that surgery leaves, attributes being `values`.

        True where it cannot be told: an argument's shape is not known, or the function does not
        run on shapes alone. The outputs are compared in the end.
        """
        try:
            key = tuple(evaluate(number.expression, values) for number in self.numbers)
            if self.count is not None and evaluate(self.count.number, values) != self.count.after:
                return False
        except ZeroDivisionError:
            return False
        if key not in self._answers:
            self._answers[key] = self._gives(after=values) or not self._can_be_checked()
        return self._answers[key]

    def _can_be_checked(self) -> bool:
        """Whether the call as it was, on shapes alone, gives what it gave."""
        if self._checkable is None:
            ghosts = [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Ghost)]
            known = all(ghost.after is not None for ghost in ghosts)
            self._checkable = known and self._gives(after=None)
        return self._checkable

    def _gives(self, after: Values | None) -> bool:
        got = self.shapes(after)
        wanted = [(new if after is not None else old) for old, new in self.results]
        if got is None or len(got) != len(wanted):
            return False
        return all(want is None or have == want for have, want in zip(got, wanted, strict=True))

    def shapes(self, after: Values | None) -> list[Shape] | None:
        """Shapes of the results on shapes alone: with new values, or as it was; None if it fails.

        A tensor whose new shape is not known makes it fail.
        """
        try:
            args, kwargs = pytree.tree_map(lambda leaf: _stand_in(leaf, after), self.args)
            with torch.device("meta"), torch.no_grad():
                result = self.function(*args, **kwargs)
        except Exception:  # whatever a kernel, or a check in Python code, raises at these sizes
            return None
        return [tuple(t.shape) for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]


@dataclass(frozen=True, slots=True)
class Cut:
    """A slice among the arguments, open to what walks through containers."""

    start: object
    stop: object
    step: object


pytree.register_pytree_node(
    Cut,
    lambda cut: ([cut.start, cut.stop, cut.step], None),
    lambda parts, _: slice(*parts),
)


def _stand_in(leaf: object, after: Values | None) -> object:
    match leaf:
        case Ghost():
            shape = leaf.before if after is None else leaf.after
            if shape is None:
                raise ValueError("the shape is not known")
            return torch.empty(shape, dtype=leaf.dtype, device="meta")
        case Number():
            return leaf.before if after is None else evaluate(leaf.expression, after)
        case torch.device():
            return torch.device("meta")
    return leaf


def template(arguments: object, after: Callable[[torch.Tensor], Shape | None]) -> object:
    """Arguments with tensors, traced integers and slices replaced by what stands for them."""

    def replace(leaf: object) -> object:
        match leaf:
            case torch.Tensor():
                return Ghost(tuple(leaf.shape), after(leaf), leaf.dtype)
            case Tagged():
                return Number(int(leaf), leaf.expression)
            case slice():
                return Cut(replace(leaf.start), replace(leaf.stop), replace(leaf.step))
            case torch.Size():
                return tuple(replace(size) for size in leaf)
        return leaf

    return pytree.tree_map(replace, arguments)


def untagged(arguments: object) -> object:
    """The same arguments with plain integers: not all of torch takes others."""

    def plain(leaf: object) -> object:
        if isinstance(leaf, slice):
            return slice(plain(leaf.start), plain(leaf.stop), plain(leaf.step))
        if isinstance(leaf, torch.Size):
            return torch.Size(int(size) for size in leaf)
        return int(leaf) if isinstance(leaf, Tagged) else leaf

    return pytree.tree_map(plain, arguments)
