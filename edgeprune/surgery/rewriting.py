"""The table of rewrites: which function adapts a node of the shrunk graph, by exact overload.

A rewrite runs on a node whose inputs or result changed size. Operators without one keep their
arguments; the shapes of all values are checked afterwards, so an operator that would have needed
one is found, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import fx
from torch._ops import OpOverload

from edgeprune.errors import InternalError
from edgeprune.surgery.operation import Operation

Rewrite: TypeAlias = Callable[[Operation, fx.Node], None]

_REWRITES: dict[OpOverload, Rewrite] = {}


def rewrite(*overloads: OpOverload) -> Callable[[Rewrite], Rewrite]:
    """Register a rewrite for exact overloads."""

    def register(function: Rewrite) -> Rewrite:
        for overload in overloads:
            if overload in _REWRITES:
                raise TypeError(f"rewrite at {overload}: expected one, got a second.")
            _REWRITES[overload] = function
        return function

    return register


def rewrite_for(target: object) -> Rewrite | None:
    """The rewrite of an overload, if it needs one."""
    return _REWRITES.get(target) if isinstance(target, OpOverload) else None


def integers(argument: object) -> list[int]:
    """Written numbers as a list, one as a list of it. Raises `InternalError` for a node."""
    return [integer(a) for a in (argument if isinstance(argument, list | tuple) else [argument])]


def integer(argument: object) -> int:
    """A number that is written in the graph. Raises `InternalError` for a node."""
    if not isinstance(argument, int):
        raise InternalError(f"surgery: expected a written integer, got {argument!r}.")
    return argument
