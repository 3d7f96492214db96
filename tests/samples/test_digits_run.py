"""The digits transformer from end to end: the recipe as it is committed, at five seeds."""

from __future__ import annotations

import five_seeds
import pytest
import torch

import edgeprune
from edgeprune.planning.plan import read_plan

WIDTH, HEADS, HEAD_WIDTH, HIDDEN = 64, 8, 8, 256


def check_widths(each: five_seeds.SeedRun) -> None:
    """Embedding, heads and MLP are all narrower; heads went whole, with their q, k and v."""
    masks = read_plan((each.folder / "plan.json").read_text(encoding="utf-8")).keep_mask()
    state = edgeprune.load(each.folder).state_dict()
    width = state["positions"].shape[-1]
    assert width < WIDTH
    assert state["patches.weight"].shape[0] == width
    for name, value in state.items():
        if "norm" in name:
            assert value.shape == (width,), name
        if name.endswith("mlp.0.weight"):
            assert value.shape[0] < HIDDEN
            assert value.shape[1] == width
    qkv = [mask[:, mask.any(axis=0)] for name, mask in masks.items() if name.endswith("qkv.weight")]
    kept_heads = []
    for mask in qkv:
        rows = mask.any(axis=1).reshape(3, HEADS, HEAD_WIDTH)
        assert (rows == rows[:1, :, :1]).all(), "a part of a head, or a head without its query"
        kept_heads.append(int(rows[0, :, 0].sum()))
    assert len(kept_heads) == 2
    assert all(0 < kept < HEADS for kept in kept_heads)


@pytest.mark.first
def test_half_the_transformer_costs_at_most_two_points(tmp_path, record_property):
    """Five runs halve heads, MLPs and embedding together, proved, and lose at most 2 points."""
    runs = five_seeds.runs_of("digits_vit", tmp_path)

    pooled = five_seeds.pooled_law("digits_vit", runs, lambda line: record_property("pooled", line))

    for each in runs:
        check_widths(each)
    assert pooled.drop <= 0.02, pooled.line("digits_vit")
    assert len({each.right.tobytes() for each in runs}) > 1


def test_nothing_of_the_transformer_is_pinned_but_its_ends():
    """Pinned are only positions of tokens and the classes: no width of the residual stream."""
    model = five_seeds.dense("digits_vit")
    inputs, _ = five_seeds.whole(five_seeds.module_of("digits_vit", "data").load().validation)

    analysis = edgeprune.analyze(model, (torch.from_numpy(inputs[:2]),))

    assert {(group.kind, group.width) for group in analysis.groups} == {
        ("channel", WIDTH),
        ("head", HEADS),
        ("neuron", HIDDEN),
    }
    assert sorted(pin.unit.split(" dim")[0] for pin in analysis.pins) == [
        "head.weight",
        "positions",
    ]
