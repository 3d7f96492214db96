"""Allocation: how many units stay, and which."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import PlanError
from edgeprune.graph.groups import Group, SlotTable
from edgeprune.planning.allocate import Request, allocate, quantum, round_width


def group(name: str, width: int, *, rows: int = 1, depthwise: bool = False) -> Group:
    """A group whose units have `rows` consecutive positions in one matrix."""
    positions = np.arange(width * rows).reshape(width, rows)
    table = SlotTable(f"{name}.weight", 0, width * rows, positions)
    return Group(name=name, kind="channel", tables=(table,), depthwise=depthwise)


@pytest.mark.parametrize(
    ("width", "wanted", "multiple", "expected"),
    [(40, 20, 16, 16), (40, 24, 16, 32), (40, 35, 16, 32), (40, 36, 16, 40), (8, 4, 16, 8)],
)
def test_widths_round_to_the_nearest_multiple(
    width: int, wanted: float, multiple: int, expected: int
) -> None:
    """Nearest allowed width; halves go up; a width below one multiple stays whole."""
    assert round_width(group("a", width), wanted, Request(multiple=multiple)) == expected


def test_a_head_of_64_rows_is_a_multiple_by_itself() -> None:
    """With 64 positions a unit, any number of units is a multiple of 16; with 24, every second."""
    assert quantum(group("a", 12, rows=64), Request(multiple=16)) == 1
    assert quantum(group("a", 12, rows=24), Request(multiple=16)) == 2


def test_depthwise_widths_are_multiples_of_four_without_being_asked() -> None:
    """A depthwise width of 10 out of 20 becomes 12 (or 8), never 10, unless the target says so."""
    depthwise = group("a", 20, depthwise=True)

    assert round_width(depthwise, 10, Request()) == 12
    assert round_width(depthwise, 10, Request(depthwise_multiple=1)) == 10
    assert round_width(depthwise, 9, Request(depthwise_multiple=8)) == 8
    assert round_width(group("b", 20), 10, Request(depthwise_multiple=8)) == 10


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    keep=st.floats(0.01, 1.0),
    multiple=st.sampled_from([1, 4, 8, 16]),
    allocation=st.sampled_from(["uniform", "global"]),
    seed=st.integers(0, 99),
)
def test_every_group_keeps_its_best_units(
    widths: list[int], keep: float, multiple: int, allocation: str, seed: int
) -> None:
    """At least one unit stays, the kept are the best, and widths are multiples or whole."""
    groups = tuple(group(f"g{i}", width) for i, width in enumerate(widths))
    generator = np.random.default_rng(seed)
    scores = {g.name: generator.random(g.width) for g in groups}

    kept = allocate(groups, scores, Request(keep, allocation, multiple))

    for g in groups:
        stays = kept[g.name]
        goes = np.setdiff1d(np.arange(g.width), stays)
        assert len(stays) >= 1
        assert len(stays) == g.width or len(stays) % multiple == 0
        if len(goes):
            assert scores[g.name][stays].min() >= scores[g.name][goes].max()


def test_global_takes_from_the_group_that_matters_least() -> None:
    """Of two groups alike but for the spread of their scores, the flat one loses nothing first."""
    groups = (group("flat", 10), group("steep", 10))
    scores = {"flat": np.full(10, 7.0), "steep": np.array([10.0, *[0.1] * 9])}

    kept = allocate(groups, scores, Request(0.55, "global", 1))

    assert len(kept["flat"]) == 10
    assert kept["steep"].tolist() == [0]


def test_global_keeps_the_asked_share_of_all_units() -> None:
    """With distinct scores and no rounding, exactly the asked number of units stays."""
    groups = (group("a", 30), group("b", 50), group("c", 20))
    generator = np.random.default_rng(0)
    scores = {g.name: generator.random(g.width) for g in groups}

    kept = allocate(groups, scores, Request(0.4, "global", 1))

    assert sum(len(stays) for stays in kept.values()) == 40


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"keep_fraction": 0.0}, "plan at keep_fraction: expected a share above 0"),
        ({"keep_fraction": 1.5}, "plan at keep_fraction: expected a share above 0"),
        ({"keep_fraction": "0.5"}, "expected a share above 0, at most 1, got '0.5'"),
        ({"keep_fraction": True}, "expected a share above 0, at most 1, got True"),
        ({"keep_fraction": None}, "expected a share above 0, at most 1, got None"),
        ({"multiple": 2.5}, "expected a whole number of at least 1, got 2.5"),
        ({"allocation": "even"}, "expected one of uniform, global, got 'even'"),
        ({"multiple": 0}, "expected a whole number of at least 1, got 0"),
    ],
)
def test_a_request_that_cannot_be_is_refused(request_: dict[str, object], text: str) -> None:
    """Each wrong value has its own message."""
    with pytest.raises(PlanError, match=text):
        Request(**request_)  # type: ignore[arg-type]


def test_gone_units_never_come_back_into_a_global_ranking() -> None:
    """A group that the loss does not see: its 8 live units score 0, its 8 gone ones -inf. Half of
    all 32 stay: the 16 live units of the other group come first, and no gone unit is counted."""
    blind = np.array([-np.inf, 0.0] * 8)
    scores = {"blind": blind, "seen": np.linspace(1.0, 2.0, 16)}

    kept = allocate((group("blind", 16), group("seen", 16)), scores, Request(0.5, "global", 1))

    assert np.isfinite(blind[kept["blind"]]).all()
    assert len(kept["blind"]) + len(kept["seen"]) == 16
    assert len(kept["seen"]) >= 14
