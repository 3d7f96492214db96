"""Solve for the attributes: one value for each, such that every call gives the shrunk shapes.

An attribute may become what a size that it equals becomes (12 heads -> 6), what it is of a product
that changes in proportion (3 * 12 * 64 -> 3 * 6 * 64), or of a sum. Which of these it is, the calls
decide: those with one answer first, the others by trying.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgeprune.surgery.call import Call
from edgeprune.surgery.tagged import Comparison, Expression, Place, Values, evaluate, places

# More combinations than this for one call are not tried: no call of a real network has them.
_MOST_COMBINATIONS = 4096
# Branches that were tried and led nowhere before the search gives up.
_MOST_BRANCHES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """New values of all attributes, or the call for which there are none."""

    values: Values
    obstacle: Call | None = None


@dataclass(slots=True)
class _Search:
    """Calls by attribute, candidates of each attribute, and how many branches were tried."""

    dense: Mapping[Place, int]
    calls: list[Call]
    candidates: dict[Place, tuple[int, ...]]
    of_place: dict[Place, list[Call]] = field(default_factory=lambda: defaultdict(list))
    branches: int = 0
    obstacle: Call | None = None

    def run(self, values: dict[Place, int], fixed: frozenset[Place]) -> dict[Place, int] | None:
        """Values under which all calls hold, `fixed` ones as they are; None if there are none."""
        values = dict(values)
        broken = [call for call in self.calls if not call.holds(values)]
        while broken:
            choices: list[tuple[Call, list[dict[Place, int]]]] = []
            for call in broken:
                solutions = self._solutions(call, values, fixed)
                if not solutions and not call.holds(values):
                    self.obstacle = self.obstacle or call
                    return None
                if len(solutions) == 1:
                    values.update(solutions[0])
                    fixed |= call.places
                choices.append((call, solutions))
            if not any(len(solutions) == 1 for _, solutions in choices):
                return self._branch(*min(choices, key=lambda c: len(c[1])), values, fixed)
            changed = [place for call in broken for place in call.places]
            broken = self._still_broken(broken, changed, values)
        return values

    def _branch(
        self,
        call: Call,
        solutions: list[dict[Place, int]],
        values: dict[Place, int],
        fixed: frozenset[Place],
    ) -> dict[Place, int] | None:
        for solution in solutions:
            self.branches += 1
            if self.branches > _MOST_BRANCHES:
                return None
            found = self.run({**values, **solution}, fixed | call.places)
            if found is not None:
                return found
        return None

    def _still_broken(
        self, broken: list[Call], changed: Iterable[Place], values: Values
    ) -> list[Call]:
        touched = dict.fromkeys(broken)
        for place in changed:
            touched.update(dict.fromkeys(self.of_place[place]))
        return [call for call in touched if not call.holds(values)]

    def _solutions(
        self, call: Call, values: dict[Place, int], fixed: frozenset[Place]
    ) -> list[dict[Place, int]]:
        """What the attributes of a call that are free may become, fewest changes first."""
        free = sorted(call.places - fixed, key=str)
        domains = [(values[p], *(c for c in self.candidates[p] if c != values[p])) for p in free]
        if math.prod(map(len, domains)) > _MOST_COMBINATIONS:
            return []
        found = []
        for choice in itertools.product(*domains):
            changes = {p: v for p, v in zip(free, choice, strict=True) if v != values[p]}
            if changes and call.holds({**values, **changes}):
                found.append(changes)
        return sorted(found, key=len)


def solve(dense: Mapping[Place, int], calls: list[Call], comparisons: list[Comparison]) -> Sizes:
    """Values under which every call holds and the code compares as it did, where possible."""
    search = _Search(dense, calls, _candidates(dense, calls))
    for call in calls:
        for place in call.places:
            search.of_place[place].append(call)
    values = search.run(dict(dense), frozenset())
    if values is None:
        return Sizes(values=dense, obstacle=search.obstacle)
    _keep_comparisons(values, search, comparisons)
    return Sizes(values=values)


def _candidates(dense: Mapping[Place, int], calls: list[Call]) -> dict[Place, tuple[int, ...]]:
    found: dict[Place, dict[int, None]] = defaultdict(dict)
    for call in calls:
        for place in call.places:
            now = dense[place]
            for before, after in call.resized:
                same = [after] if before == now else []
                share = [now * after // before] if before and now * after % before == 0 else []
                rest = [now - before + after] if before > now else []
                options = (*same, *share, *rest)
                found[place].update({n: None for n in options if n > 0})
    return {place: tuple(found[place]) for place in dense}


def _keep_comparisons(
    values: dict[Place, int], search: _Search, comparisons: list[Comparison]
) -> None:
    """Where two numbers were equal and no longer are, a bare attribute follows the other side.

    Only one that no call contradicts (in place). What is left shows in the outputs, if anywhere.
    """
    for comparison in comparisons:
        if not comparison.were_equal:
            continue
        for side, other in (
            (comparison.left, comparison.right),
            (comparison.right, comparison.left),
        ):
            wanted = _value(other, values)
            if not isinstance(side, Place) or wanted is None or wanted == values[side]:
                continue
            trial = {**values, side: wanted}
            untouched = values[side] == search.dense[side] and _moved(other, values, search.dense)
            if untouched and all(call.holds(trial) for call in search.of_place[side]):
                values[side] = wanted
                break


def _moved(expression: Expression, values: Values, dense: Values) -> bool:
    """Whether an expression is one of sizes, or reads an attribute that has changed."""
    read = places(expression)
    return not read or any(values[place] != dense[place] for place in read)


def _value(expression: Expression, values: Values) -> int | None:
    try:
        return evaluate(expression, values)
    except ZeroDivisionError:
        return None
