"""Heads or head dim: which of the two removable axes of a value is offered.

Whole heads first. Where heads cannot go (a table computed in the graph, a softmax over heads, a
single key for all of them), the positions inside them are offered instead, and the other way
round: the graph is walked again with the other choice at the nodes where the first offered
nothing. Whatever is chosen, what is kept of a value is rectangular.
"""

from __future__ import annotations

from edgeprune.graph.capture import Captured
from edgeprune.graph.propagate import Walk, walk
from edgeprune.graph.units import Partition, partition


def resolve(captured: Captured, *, exact_only: bool) -> tuple[Walk, Partition]:
    """The walk whose choices offer most positions of the model, and its units."""
    flipped: frozenset[str] = frozenset()
    best = _try(captured, exact_only, flipped)
    while True:
        better = None
        for more in _barren(*best, flipped):
            tried = _try(captured, exact_only, flipped | more)
            if _offered(tried) > _offered(best):
                better, flipped = tried, flipped | more
                break
        if better is None:
            return best
        best = better


def _try(captured: Captured, exact_only: bool, flipped: frozenset[str]) -> tuple[Walk, Partition]:
    found = walk(captured, exact_only=exact_only, flipped=flipped)
    return found, partition(found, captured.module)


def _offered(tried: tuple[Walk, Partition]) -> int:
    """How many positions of parameters and buffers belong to a unit."""
    found, parts = tried
    return sum(
        int((parts.group_of_label[axis.first_label : axis.first_label + axis.size] >= 0).sum())
        for axis in found.labels.axes
        if axis.is_parameter
    )


def _barren(found: Walk, parts: Partition, flipped: frozenset[str]) -> tuple[frozenset[str], ...]:
    """Nodes to flip, in the order to try: those that would offer heads, then all of them."""
    heads: set[str] = set()
    every: set[str] = set()
    for choice in found.choices:
        if choice.node in flipped or (parts.group_of_label[choice.layer.numpy()] >= 0).any():
            continue
        every.add(choice.node)
        if not choice.heads:
            heads.add(choice.node)
    tries = dict.fromkeys((frozenset(heads), frozenset(every)))
    return tuple(names for names in tries if names)
