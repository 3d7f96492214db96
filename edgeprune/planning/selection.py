"""Only what is asked: which groups may shrink, each how far, and how narrow none may become.

Patterns are shell patterns (`layer4.*`, `*.mlp.0.weight`) over names of tensors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from edgeprune.errors import PlanError
from edgeprune.graph.groups import Group, TensorShape

_EVERY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the user asked of single groups; values are validated here, patterns in `terms`.

    keep: tensors that stay as they are. only: the layers whose width may shrink. fractions: the
    share of units kept (0-1], for layers that do not follow the plan's own. min_width: the fewest
    units left of a width, for all or by pattern; where several patterns match, all of them hold.
    """

    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    fractions: Mapping[str, float] = field(default_factory=dict)
    min_width: int | Mapping[str, int] = 1

    def __post_init__(self) -> None:
        for option in ("keep", "only"):
            _require_patterns(option, getattr(self, option))
        if not isinstance(self.fractions, Mapping):
            raise _refused("fractions", "pattern = share pairs", repr(self.fractions))
        if not isinstance(self.min_width, Mapping | int):
            raise _refused("min_width", "a whole number, or one by pattern", repr(self.min_width))
        for pattern, share in self.fractions.items():
            if not _is_share(share):
                got = f"{share!r} for {pattern!r}"
                raise _refused("fractions", "shares above 0, at most 1", got, "0.25 keeps a fourth")
        for pattern, units in self.floors.items():
            if not _is_count(units):
                got = f"{units!r} for {pattern!r}"
                raise _refused("min_width", "whole numbers of at least 1", got, "1 is no limit")

    @property
    def floors(self) -> Mapping[str, int]:
        """`min_width` by pattern."""
        return {_EVERY: self.min_width} if isinstance(self.min_width, int) else self.min_width

    @property
    def in_force(self) -> tuple[str, ...]:
        """The options that hold a width up, for messages."""
        given = {
            "keep": bool(self.keep),
            "only": bool(self.only),
            "fractions": bool(self.fractions),
            "min_width": any(units > 1 for units in self.floors.values()),
        }
        return tuple(option for option, is_given in given.items() if is_given)

    @property
    def removes(self) -> bool:
        """Whether a width is to shrink whatever share the plan keeps of the others."""
        return any(share < 1 for share in self.fractions.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What holds for one group: whether it stays whole, its own share (0-1), its fewest units."""

    whole: bool
    fraction: float | None
    least: int


@dataclass(frozen=True, slots=True)
class Names:
    """What the tensors of a group are called: a tied tensor by each of its names."""

    tensors: tuple[TensorShape, ...] = ()

    def of(self, parameters: Iterable[str]) -> tuple[str, ...]:
        """`parameters` and the further names of each."""
        first = tuple(dict.fromkeys(parameters))
        return first + tuple(t.name for t in self.tensors if t.same_as in first)

    def known(self, group: Group) -> tuple[str, ...]:
        """A group goes by its own name and by the weights that make its width."""
        return self.of((group.name, *group.makers))

    def touched(self, group: Group) -> tuple[str, ...]:
        """Every tensor that loses positions with a unit."""
        return self.of(table.parameter for table in group.tables)


def terms(
    groups: tuple[Group, ...], selection: Selection, tensors: tuple[TensorShape, ...] = ()
) -> dict[str, Terms]:
    """The terms of every group, by its name; `tensors` tell which are tied.

    A group is meant by `only`, `fractions` and `min_width` where a pattern matches a weight that
    makes its width, and by `keep` where one matches any tensor that would lose positions with it:
    what is kept loses nothing. Raises `PlanError` for a pattern that matches nothing, and for
    two that ask different shares of one group.
    """
    names = Names(tensors)
    whole = {name for p in selection.keep for name in _matching(groups, names, "keep", p)}
    if selection.only:
        meant = {name for p in selection.only for name in _matching(groups, names, "only", p)}
        whole |= {group.name for group in groups} - meant
    shares = _shares(groups, names, selection, whole)
    floors: dict[str, int] = {}
    for pattern, units in selection.floors.items():
        for name in _matching(groups, names, "min_width", pattern):
            floors[name] = max(units, floors.get(name, 1))
    return {
        group.name: Terms(
            whole=group.name in whole,
            fraction=shares.get(group.name),
            least=min(floors.get(group.name, 1), group.width),
        )
        for group in groups
    }


def _shares(
    groups: tuple[Group, ...], names: Names, selection: Selection, whole: set[str]
) -> dict[str, float]:
    """The share that each group was given, by its name."""
    found: dict[str, tuple[float, str]] = {}
    for pattern, share in selection.fractions.items():
        meant = _matching(groups, names, "fractions", pattern)
        if meant and meant <= whole:
            raise _refused(
                "fractions",
                f"a pattern of widths that keep and only leave free, for {share:g}",
                f"{pattern!r}, all of whose widths stay",
                "Drop it there or here",
            )
        for name in sorted(meant):
            other, said = found.setdefault(name, (share, pattern))
            if other != share:
                raise _refused(
                    "fractions",
                    f"one share for the width of {name}",
                    f"{other:g} by {said!r} and {share:g} by {pattern!r}",
                    "Make one of the patterns narrower",
                )
    return {name: share for name, (share, _) in found.items()}


def _matching(groups: tuple[Group, ...], names: Names, option: str, pattern: str) -> set[str]:
    """Names of the groups that a pattern means. `*` means every group, even of none."""
    spell = names.touched if option == "keep" else names.known
    found = {
        group.name for group in groups if any(fnmatchcase(name, pattern) for name in spell(group))
    }
    if not found and pattern != _EVERY:
        raise _matches_nothing(groups, names, option, pattern)
    return found


def _matches_nothing(
    groups: tuple[Group, ...], names: Names, option: str, pattern: str
) -> PlanError:
    expected = "a pattern that matches a tensor which can shrink"
    if option != "keep":
        expected = "a pattern that matches a weight which makes a width that can shrink"
        for group in groups:
            for name in names.touched(group):
                if fnmatchcase(name, pattern):
                    got = f"{pattern!r}: {name} only follows the width of {group.name}"
                    return _refused(option, expected, got, f"Name that: {group.name!r}")
    spellings = list(dict.fromkeys(n for group in groups for n in names.touched(group)))
    if any(name.startswith(f"{pattern}.") for name in spellings):
        advice = f"Did you mean {f'{pattern}.*'!r}?"
    else:
        near = difflib.get_close_matches(pattern, spellings, n=1, cutoff=0.6)
        advice = f"Did you mean {near[0]!r}?" if near else "`edgeprune inspect -v` lists the names"
    return _refused(option, expected, repr(pattern), advice)


def _is_share(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= 1


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require_patterns(option: str, given: object) -> None:
    if isinstance(given, str):
        raise _refused(option, "a tuple of patterns", f"the text {given!r}", f"Write ({given!r},)")
    if not isinstance(given, Iterable) or not all(isinstance(p, str) and p for p in given):
        raise _refused(option, "a tuple of patterns", repr(given), "Give texts like 'layer4.*'")


def _refused(option: str, expected: str, got: str, advice: str = "See docs/recipe.md") -> PlanError:
    end = "" if advice.endswith("?") else "."
    return PlanError(
        f"plan at {option}: expected {expected}, got {got}. {advice}{end}", where=option
    )
