"""Carrying out a plan: what is refused, what is described, what is left of the widths."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_nets import conv, image, net, noise
from torch import nn

from edgeprune.errors import PlanError, UsageError
from edgeprune.graph.analysis import analyze
from edgeprune.planning.cost import cost
from edgeprune.planning.plan import KeptAxis, plan
from edgeprune.scoring.scores import score
from edgeprune.surgery.compose import compose
from edgeprune.surgery.prove import prove
from edgeprune.surgery.prune import prune
from edgeprune.surgery.shrink import shrink


def mixed():
    """Widths 16 and 12, one of them depthwise, and heads of 4 rows."""

    def run(m, x):
        y = m.d(m.a(x)).relu()
        z = m.n(m.b(y).flatten(2).transpose(1, 2))
        return m.h(m.t(z, z, z, need_weights=False)[0].mean(1))

    return net(
        run,
        a=conv(3, 16),
        d=conv(16, 16, groups=16),
        b=conv(16, 12, 1),
        n=nn.LayerNorm(12),
        t=nn.MultiheadAttention(12, 3, batch_first=True),
        h=nn.Linear(12, 4),
    )


@pytest.fixture(scope="module")
def analysis():
    """The mixed net, analysed once."""
    return analyze(mixed(), (image(2, size=4),))


def altered(analysis, name, **change):
    """A plan at half, with the first axis of a tensor changed."""
    decided = plan(analysis, score(analysis))
    place = next(i for i, axis in enumerate(decided.axes) if axis.parameter == name)
    axes = list(decided.axes)
    axes[place] = dataclasses.replace(axes[place], **change)
    return dataclasses.replace(decided, axes=tuple(axes))


def test_what_belongs_to_another_model_or_is_something_else_is_refused(analysis):
    """Scores of another width never decide silently; an odd argument is named with its remedy."""
    other = analyze(net(lambda m, x: m.b(m.a(x)), a=conv(3, 8), b=conv(8, 4)), (image(),))
    decided = plan(analysis, score(analysis))

    with pytest.raises(PlanError, match=r"scores of .*: expected one for each of its \d+ units"):
        plan(analysis, score(other))
    with pytest.raises(UsageError, match=r"plan at scores: .* NoneType. Write plan\(analysis, sc"):
        plan(analysis, None)
    with pytest.raises(UsageError, match="score at analysis: expected Analysis, got Net"):
        score(mixed())
    with pytest.raises(UsageError, match="shrink at plan: expected Plan, got Scores"):
        shrink(analysis, score(analysis))
    with pytest.raises(UsageError, match="prove at pruned: expected Module, got Plan"):
        prove(analysis, decided, decided)


def test_a_part_of_a_unit_is_refused(analysis):
    """One tensor keeps what the others lose: the plan names the tensor and the group."""
    decided = plan(analysis, score(analysis))
    keep = next(axis.keep for axis in decided.axes if axis.parameter == "a.bias")
    other = tuple(sorted({*range(16)} - {*keep}))

    with pytest.raises(PlanError, match=r"expected whole units of group a\.weight"):
        shrink(analysis, altered(analysis, "a.bias", keep=other))


def test_a_plan_for_another_width_is_refused(analysis):
    """16 positions here, 20 in the plan."""
    with pytest.raises(PlanError, match=r"a\.bias dim 0: expected 16 positions"):
        shrink(analysis, altered(analysis, "a.bias", size=20))


@pytest.mark.parametrize("name", ["h.weight", "nobody.weight"])
def test_a_position_that_is_no_units_is_refused(analysis, name):
    """The output layer's rows may not go, whoever says so; nor those of another model."""
    decided = plan(analysis, score(analysis))
    extra = KeptAxis(parameter=name, dim=0, size=4, keep=(0, 1))

    with pytest.raises(PlanError, match="pinned or not in this model"):
        shrink(analysis, dataclasses.replace(decided, axes=(*decided.axes, extra)))


def test_masks_multiply_over_the_dims_of_a_tensor(analysis):
    """b.weight loses rows and columns: its mask is their outer product, by NumPy."""
    decided = plan(analysis, score(analysis))
    keep = {(a.parameter, a.dim): list(a.keep) for a in decided.axes}
    rows, columns = np.zeros(12, bool), np.zeros(16, bool)
    rows[keep["b.weight", 0]] = columns[keep["b.weight", 1]] = True

    mask = decided.keep_mask()["b.weight"]
    assert np.array_equal(mask[:, :, 0, 0], np.outer(rows, columns))
    assert mask.sum() == shrink(analysis, decided).b.weight.numel()


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_widths_are_multiples_in_the_shrunk_tensors(analysis, multiple):
    """Asked for 8, each width is a multiple of 8 or whole; depthwise is a multiple of 4 anyway."""
    small = shrink(analysis, plan(analysis, score(analysis), keep_fraction=0.6, multiple=multiple))

    for made, dense in ((small.a.weight.shape[0], 16), (small.b.weight.shape[0], 12)):
        assert made == dense or made % multiple == 0
    assert small.d.weight.shape[0] % 4 == 0


def test_global_keeps_about_the_asked_share(analysis):
    """Over all units together, up to the rounding of each group."""
    decided = plan(analysis, score(analysis), keep_fraction=0.5, allocation="global")

    assert decided.unit_keep_fraction == pytest.approx(0.5, abs=0.15)


def test_keep_and_only_choose_groups_by_their_tensors(analysis):
    """`keep` leaves whole what would take from a tensor, `only` means the weights that make it."""

    def touched(**options):
        decided = plan(analysis, score(analysis), **options)
        return {group.name for group in decided.groups if len(group.keep) < group.width}

    everything = {group.name for group in analysis.groups}
    assert touched(only=("a.weight",)) == {"a.weight"}
    assert touched(keep=("a.bias",)) == everything - {"a.weight"}
    # b.weight reads one width and makes another.
    assert touched(only=("b.*",)) == {"b.weight"}
    assert touched(keep=("b.*",)) == everything - {"a.weight", "b.weight"}
    with pytest.raises(PlanError, match="a.bias only follows the width of a.weight"):
        touched(only=("a.bias",))


def test_composed_plans_keep_the_positions_of_the_first(analysis):
    """Positions 1 and 3 of what is left of (0, 2, 4, ...) are 2 and 6 of the dense model."""
    x = image(2, size=4)
    first = prune(mixed(), (x,), keep_fraction=0.75, only=("a.weight",))
    second = prune(first.model, (x,), keep_fraction=0.7, only=("a.weight",))
    both = compose(first.analysis, first.plan, second.plan)

    one, two, final = (
        next(a.keep for a in p.axes if a.parameter == "a.weight")
        for p in (first.plan, second.plan, both)
    )
    assert final == tuple(one[i] for i in two)
    with pytest.raises(PlanError, match="in order"):
        compose(first.analysis, second.plan, first.plan)


def test_cost_counts_by_hand():
    """A convolution 3 -> 8 of 3x3 on 6x6 and a linear layer 8 -> 4, for one sample."""
    model = net(lambda m, x: m.h(m.a(x).mean((2, 3))), a=conv(3, 8), h=nn.Linear(8, 4))
    dense = cost(analyze(model, (image(5),)).captured)

    assert dense.params == 8 * 27 + 8 + 32 + 4
    assert dense.macs == 36 * 8 * 27 + 32


def test_cost_of_attention_and_groups_by_hand():
    """q k^T and its product with v: 2 x 5 x 5 x 8; a depthwise kernel reads one channel."""
    model = net(
        lambda m, x: nn.functional.scaled_dot_product_attention(m.q(x), m.q(x), m.q(x)),
        q=nn.Linear(6, 8),
    )
    depthwise = net(lambda m, x: m.d(x), d=conv(4, 4, groups=4))

    # Three calls of q.
    assert cost(analyze(model, (noise(3, 5, 6),)).captured).macs == 3 * 5 * 6 * 8 + 2 * 25 * 8
    assert cost(analyze(depthwise, (noise(2, 4, 6, 6),)).captured).macs == 36 * 4 * 9


def test_the_analysed_model_is_not_changed(analysis):
    """shrink works on a copy: the dense graph still gives the dense output."""
    x = image(2, size=4)
    before = analysis.captured.module(x)
    small = shrink(analysis, plan(analysis, score(analysis)))
    with torch.no_grad():
        small.h.weight.zero_()

    assert analysis.captured.module(x).equal(before)


def test_every_name_of_a_tensor_gets_the_shrunk_one():
    """A second name that the graph never reads is neither the dense tensor nor a copy of it."""
    first = prune(mixed(), (image(2, size=4),), keep_fraction=0.75)
    graph = first.model
    graph.register_parameter("alias", graph.get_parameter("a.weight"))
    analysis = analyze(graph, first.analysis.captured.args)

    small = shrink(analysis, plan(analysis, score(analysis)))

    assert small.get_parameter("alias") is small.get_parameter("a.weight")
    assert graph.get_parameter("alias").shape[0] > small.get_parameter("alias").shape[0]
    dense = {t.data_ptr() for t in analysis.captured.module.state_dict().values() if t.numel()}
    assert not dense & {t.data_ptr() for t in small.state_dict().values() if t.numel()}
