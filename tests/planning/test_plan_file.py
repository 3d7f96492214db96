"""The plan as a file: readable, exact, and refused when it is not one."""

from __future__ import annotations

import json

import pytest

from edgeprune.errors import PlanError
from edgeprune.graph.groups import TensorShape
from edgeprune.planning.plan import KeptAxis, KeptGroup, Plan, read_plan

PLAN = Plan(
    criterion="l2",
    allocation="uniform",
    keep_fraction=0.5,
    multiple=1,
    groups=(KeptGroup(name="a.weight", kind="channel", width=4, keep=(0, 3)),),
    axes=(
        KeptAxis(parameter="a.weight", dim=0, size=4, keep=(0, 3)),
        KeptAxis(parameter="b.weight", dim=1, size=4, keep=(0, 3)),
    ),
    tensors=(
        TensorShape(name="a.weight", shape=(4, 2)),
        TensorShape(name="b.weight", shape=(3, 4)),
        TensorShape(name="c.weight", shape=(3, 4), same_as="b.weight"),
    ),
)


def test_a_plan_survives_its_file() -> None:
    """Reading what was written gives an equal plan with the same fingerprint."""
    again = read_plan(PLAN.to_json())

    assert again == PLAN
    assert again.fingerprint == PLAN.fingerprint


def test_the_file_has_a_line_for_every_group_and_axis() -> None:
    """A diff of two plans shows the group that changed: golden first lines."""
    assert PLAN.to_json().splitlines()[:9] == [
        "{",
        '  "schema": 1,',
        '  "criterion": "l2",',
        '  "allocation": "uniform",',
        '  "keep_fraction": 0.5,',
        '  "multiple": 1,',
        '  "groups": [',
        '    {"name": "a.weight", "kind": "channel", "width": 4, "keep": [0, 3]}',
        "  ],",
    ]


def test_masks_cover_every_dense_tensor_and_ties_share_theirs() -> None:
    """Rows 0 and 3 of a, columns 0 and 3 of b, and the same of c, which is b under another name."""
    masks = PLAN.keep_mask()

    assert masks["a.weight"].tolist() == [[True] * 2, [False] * 2, [False] * 2, [True] * 2]
    assert masks["b.weight"].tolist() == [[True, False, False, True]] * 3
    assert (masks["c.weight"] == masks["b.weight"]).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 2}, "plan at p.json, schema: expected a plan of schema 1, got 2"),
        ({"colour": "red"}, "plan at p.json, colour: expected a plan of schema 1"),
        ({"groups": [{"name": "a"}]}, "plan at p.json, groups.0"),
        (
            {"axes": [{"parameter": "a.weight", "dim": 0, "size": 4, "keep": [3, 0]}]},
            "a.weight: expected sorted indices from 0 to 3, at least one, got",
        ),
        (
            {"axes": [{"parameter": "a.weight", "dim": 0, "size": 4, "keep": []}]},
            "a.weight: expected sorted indices from 0 to 3, at least one, got",
        ),
    ],
)
def test_a_file_that_is_no_plan_is_refused(change: dict[str, object], text: str) -> None:
    """The message names the file, the key, what was expected and what stands there."""
    with pytest.raises(PlanError) as caught:
        read_plan(json.dumps({**json.loads(PLAN.to_json()), **change}), where="p.json")

    assert text in str(caught.value)


def test_text_that_is_not_json_is_refused() -> None:
    """A truncated file is one clear error."""
    with pytest.raises(PlanError, match=r"plan at plan\.json, the file: expected a plan"):
        read_plan(PLAN.to_json()[:40])
