"""Only what is asked: patterns, shares of their own, and the fewest units left."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import PlanError
from edgeprune.graph.groups import Group, SlotTable, TensorShape
from edgeprune.planning.allocate import Request, allocate
from edgeprune.planning.selection import Selection, terms

NAMES = ("stem", "a.0", "a.1", "b.0", "b.1")
PATTERNS = ("a.*", "b.*", "*.0.weight", "*.1.weight", "stem.weight", "*")


def group(name: str, width: int, *, reader: str = "", norm: str = "") -> Group:
    """A width made by `name.weight`, read by `reader.weight`, followed by `norm.weight`."""
    positions = np.arange(width).reshape(width, 1)
    tables = [SlotTable(f"{name}.weight", 0, width, positions)]
    tables += [SlotTable(f"{reader}.weight", 1, width, positions, makes=False)] if reader else []
    tables += [SlotTable(f"{norm}.weight", 0, width, positions, makes=False)] if norm else []
    return Group(name=f"{name}.weight", kind="channel", tables=tuple(tables))


def chain(widths: list[int]) -> tuple[Group, ...]:
    """Layers one after the other: each reads the width of the one before it."""
    readers = [*NAMES[1:], "head"]
    return tuple(group(n, w, reader=r) for n, w, r in zip(NAMES, widths, readers, strict=True))


WIDTHS = st.lists(st.integers(1, 40), min_size=5, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    widths=WIDTHS,
    keep_fraction=st.floats(0.01, 1.0),
    allocation=st.sampled_from(["uniform", "global"]),
    multiple=st.sampled_from([1, 4, 8]),
    keep=st.sets(st.sampled_from(PATTERNS[:-1]), max_size=2),
    only=st.sets(st.sampled_from(PATTERNS), max_size=2),
    fraction=st.tuples(st.sampled_from(PATTERNS), st.floats(0.01, 1.0)),
    floors=st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 30), max_size=3),
    seed=st.integers(0, 99),
)
def test_only_what_is_asked_is_removed(
    widths: list[int],
    keep_fraction: float,
    allocation: str,
    multiple: int,
    keep: set[str],
    only: set[str],
    fraction: tuple[str, float],
    floors: dict[str, int],
    seed: int,
) -> None:
    """However options are combined: nothing that `keep` names loses a position, nothing that
    `only` does not name loses width, no width falls below its minimum, a share of its own is met
    to the nearest allowed width, and every width is a multiple or whole."""
    groups = chain(widths)
    generator = np.random.default_rng(seed)
    scores = {g.name: generator.random(g.width) for g in groups}
    selection = Selection(
        keep=tuple(keep), only=tuple(only), fractions=dict([fraction]), min_width=floors
    )
    request = Request(keep_fraction, allocation, multiple, selection=selection)

    def stays(maker: str, reader: str) -> bool:
        kept = any(fnmatchcase(name, pattern) for name in (maker, reader) for pattern in keep)
        return kept or bool(only and not any(fnmatchcase(maker, pattern) for pattern in only))

    layers = [f"{name}.weight" for name in (*NAMES, "head")]
    whole = {maker for maker, reader in pairwise(layers) if stays(maker, reader)}
    mine = {name for name in layers[:-1] if fnmatchcase(name, fraction[0])}
    if mine <= whole:  # a share for what must stay
        with pytest.raises(PlanError, match="plan at fractions"):
            allocate(groups, scores, request)
        return
    kept = allocate(groups, scores, request)

    for g in groups:
        left = len(kept[g.name])
        least = max([1, *(n for p, n in floors.items() if fnmatchcase(g.name, p))])
        allowed = [n for n in range(multiple, g.width, multiple) if n >= least] + [g.width]
        assert left in ([g.width] if g.name in whole else allowed)
        if g.name in mine - whole:
            wanted = fraction[1] * g.width
            assert abs(left - wanted) == min(abs(n - wanted) for n in allowed)


@settings(max_examples=60, deadline=None)
@given(widths=WIDTHS, share=st.floats(0.1, 0.9), own=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_a_share_of_its_own_leaves_the_others_as_they_were(
    widths: list[int], share: float, own: float, seed: int
) -> None:
    """Naming the widths of `b` changes none of the others, with uniform and with global of the
    rest alone."""
    groups = chain(widths)
    generator = np.random.default_rng(seed)
    scores = {g.name: generator.random(g.width) for g in groups}
    mine = Request(share, "global", selection=Selection(fractions={"b.*": own}))
    rest = tuple(g for g in groups if not g.name.startswith("b."))

    with_b = allocate(groups, scores, mine)
    without = allocate(rest, scores, Request(share, "global"))

    for g in rest:
        assert with_b[g.name].tolist() == without[g.name].tolist()


def test_a_pattern_means_the_layers_that_make_a_width_not_those_that_read_it() -> None:
    """`only = b.*`: the width of a.1 is read by b.0 and stays; `keep = b.*`: it stays too, as b.0
    would lose columns."""
    groups = chain([8, 8, 8, 8, 8])
    scores = {g.name: np.arange(8.0) for g in groups}

    def left(selection: Selection) -> list[int]:
        kept = allocate(groups, scores, Request(0.5, selection=selection))
        return [len(kept[f"{name}.weight"]) for name in NAMES]

    assert left(Selection(only=("b.*",))) == [8, 8, 8, 4, 4]
    assert left(Selection(keep=("b.*",))) == [4, 4, 8, 8, 8]
    assert left(Selection(fractions={"b.*": 0.25})) == [4, 4, 4, 2, 2]
    assert left(Selection(min_width={"b.*": 6, "*.1.weight": 5})) == [4, 4, 5, 6, 6]


def test_a_tied_tensor_goes_by_each_of_its_names() -> None:
    """The head's weight is the embedding under another name: either name keeps the width."""
    groups = chain([8, 8, 8, 8, 8])
    tied = (
        TensorShape(name="stem.weight", shape=(8, 3)),
        TensorShape(name="out.weight", shape=(8, 3), same_as="stem.weight"),
    )

    for option in (Selection(keep=("out.*",)), Selection(keep=("stem.*",))):
        assert terms(groups, option, tied)["stem.weight"].whole


def test_of_several_minima_all_hold() -> None:
    """A floor for all and a higher one for a layer: the higher one; no more than the width."""
    found = terms(chain([40, 40, 3, 40, 40]), Selection(min_width={"*": 8, "a.0.*": 16}))

    assert [found[f"{name}.weight"].least for name in NAMES] == [8, 16, 3, 8, 8]


def test_a_width_below_the_minimum_stays_whole() -> None:
    """6 units with a minimum of 8 stay 6; 9 with multiples of 4 stay 9, as 8 is the only step."""
    groups = (group("a", 6), group("b", 9))
    scores = {g.name: np.arange(float(g.width)) for g in groups}
    kept = allocate(groups, scores, Request(0.1, multiple=4, selection=Selection(min_width=9)))

    assert [len(kept[g.name]) for g in groups] == [6, 9]


@pytest.mark.parametrize("option", ["keep", "only", "fractions", "min_width"])
def test_a_pattern_that_matches_nothing_is_an_error(option: str) -> None:
    """Each option names itself, the pattern, and a near name where there is one."""
    pattern = "a.0.weigth"
    value = {"fractions": {pattern: 0.5}, "min_width": {pattern: 8}}.get(option, (pattern,))
    with pytest.raises(PlanError) as caught:
        terms(chain([8] * 5), Selection(**{option: value}))

    assert str(caught.value).startswith(f"plan at {option}: expected a pattern that matches a ")
    assert str(caught.value).endswith("got 'a.0.weigth'. Did you mean 'a.0.weight'?")


def test_a_module_path_is_told_its_pattern_and_a_reader_its_maker() -> None:
    """`a` is no tensor, `a.*` is; a norm and a reader follow a width and are told whose."""
    groups = (group("a.0", 8, reader="b.0", norm="a.norm"),)

    with pytest.raises(PlanError, match=r"got 'a'\. Did you mean 'a\.\*'\?"):
        terms(groups, Selection(only=("a",)))
    with pytest.raises(PlanError, match=r"b\.0\.weight only follows the width of a\.0\.weight"):
        terms(groups, Selection(fractions={"b.*": 0.5}))
    with pytest.raises(PlanError, match=r"a\.norm\.weight only follows .* Name that: 'a\.0\.wei"):
        terms(groups, Selection(only=("a.norm.*",)))


def test_everything_may_be_said_of_a_model_without_widths() -> None:
    """`*` means every width, of none too: that nothing can be removed is told elsewhere."""
    assert terms((), Selection(only=("*",), min_width=8)) == {}


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        ({"fractions": {"a.*": 0.0}}, "shares above 0, at most 1, got 0.0 for 'a.*'"),
        ({"fractions": {"a.*": 1.5}}, "shares above 0, at most 1, got 1.5 for 'a.*'"),
        ({"fractions": {"a.*": math.nan}}, "shares above 0, at most 1, got nan for 'a.*'"),
        ({"fractions": {"a.*": True}}, "shares above 0, at most 1, got True for 'a.*'"),
        ({"fractions": ["a.*"]}, "pattern = share pairs, got ['a.*']"),
        ({"fractions": 1}, "pattern = share pairs, got 1"),
        ({"min_width": "8"}, "a whole number, or one by pattern, got '8'"),
        ({"min_width": 0}, "whole numbers of at least 1, got 0 for '*'"),
        ({"min_width": {"a.*": 2.5}}, "whole numbers of at least 1, got 2.5 for 'a.*'"),
        ({"keep": "a.*"}, "a tuple of patterns, got the text 'a.*'. Write ('a.*',)"),
        ({"only": ("",)}, "a tuple of patterns, got ('',)"),
    ],
)
def test_values_that_cannot_be_are_refused(selection: dict[str, object], text: str) -> None:
    """Each wrong value has its own message, before any model is looked at."""
    with pytest.raises(PlanError) as caught:
        Selection(**selection)

    assert text in str(caught.value)


def test_two_shares_for_one_width_are_an_error() -> None:
    """No order of patterns decides: the message names both. The same share twice is none."""
    groups = chain([8] * 5)

    with pytest.raises(PlanError, match=r"a\.0\.weight, got 0\.5 by 'a\.\*' and 0\.25 by '\*\.0"):
        terms(groups, Selection(fractions={"a.*": 0.5, "*.0.weight": 0.25}))
    found = terms(groups, Selection(fractions={"a.*": 0.5, "*.0.weight": 0.5}))
    assert found["a.0.weight"].fraction == 0.5


def test_a_share_for_what_stays_is_a_contradiction() -> None:
    """Keep and a share for the same widths: an error, unless the pattern means free ones too."""
    groups = chain([8] * 5)

    with pytest.raises(PlanError, match=r"plan at fractions: expected .* 'stem.weight', all of"):
        terms(groups, Selection(keep=("stem.*",), fractions={"stem.weight": 0.5}))
    found = terms(groups, Selection(keep=("a.0.*",), fractions={"a.*": 0.5}))
    assert found["a.0.weight"].whole
    assert found["a.1.weight"].fraction == 0.5
