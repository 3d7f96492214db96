"""Sums, means and softmax over a removable axis."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import between, between_features, conv, image, net, noise, require_equal
from torch import nn

from edgeprune.errors import PlanError
from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune


@pytest.mark.parametrize("kind", ["sum", "mean"])
@pytest.mark.parametrize("keepdim", [False, True])
def test_a_mean_keeps_the_dense_count(kind, keepdim):
    """Summed over kept channels; a mean divides by 8 although 4 are left."""
    model = net(
        lambda m, x: m.b(getattr(m.a(x).relu(), kind)(1, keepdim=keepdim).flatten(1)),
        a=conv(3, 8),
        b=nn.Linear(36, 4),
    )
    x = image(3)
    pruned = prune(model, (x,), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    total = model.a(x).relu()[:, kept].sum(1) / (8 if kind == "mean" else 1)
    require_equal(pruned.model(x), model.b(total.flatten(1)))
    assert pruned.proof.outcome == "proved"


def test_a_mean_over_channels_and_space():
    """One factor for the channels; the space keeps its own count, on any batch."""
    model = net(lambda m, x: m.b(m.a(x).relu().mean((1, 2))), a=conv(3, 8), b=nn.Linear(6, 4))
    x = image(5)
    pruned = prune(model, (image(),), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    require_equal(pruned.model(x), model.b(model.a(x).relu()[:, kept].sum((1, 2)) / 48))


def test_what_reads_a_scaled_mean_still_shrinks():
    """A mean over one width, then a split of another: both rewrites meet in one value."""

    def run(m, x):
        rows = m.a(x).unflatten(-1, (6, 8)).tanh()
        one, two = (rows.mean(1) + m.c(x)).chunk(2, 1)
        return m.b(one) + m.d(two)

    model = net(run, a=nn.Linear(8, 48), c=nn.Linear(8, 8), b=nn.Linear(4, 3), d=nn.Linear(4, 3))

    for fraction in (0.5, 0.75):
        assert prune(model, (noise(2, 8),), keep_fraction=fraction).proof.holds


def test_pruned_again_the_mean_still_has_the_dense_count():
    """8 channels, then 6, then 3: the sum is still divided by 8, in one multiplication."""
    model = net(
        lambda m, x: m.b(m.a(x).relu().mean(1).flatten(1)), a=conv(3, 8), b=nn.Linear(36, 4)
    )
    x = image(3)
    once = prune(model, (x,), keep_fraction=0.75)
    twice = prune(once.model, (x,), keep_fraction=0.5)

    small = twice.model
    total = F.conv2d(x, small.a.weight, small.a.bias, padding=1).relu().sum(1) / 8
    require_equal(small(x), model.b(total.flatten(1)))
    assert str(small.code).count("mul.Scalar") == 1


def test_mean_over_the_head_dim_lets_heads_go():
    """Averaged within each head: whole heads are the units and the count does not change."""
    model = between_features(lambda y: y.unflatten(-1, (3, 4)).tanh().mean(-1), 12, 3)
    pruned = prune(model, (noise(2, 8),), criterion="random")

    assert pruned.analysis.unit_of("a.weight", 0, 5).slots[0].positions == (4, 5, 6, 7)
    assert pruned.proof.outcome == "proved"


@pytest.mark.parametrize("op", [lambda y: y.softmax(1), lambda y: y.cumsum(1)])
def test_softmax_and_running_sums_need_all_positions(op):
    """All positions stand or fall together: nothing to remove, and the reason says why."""
    with pytest.raises(PlanError, match="softmax or running sum over this axis"):
        prune(between(op), (image(),))


def test_softmax_over_branches_lets_channels_go():
    """Selective kernels: softmax over two branches, channel 3 of all of them is one unit."""

    def run(m, x):
        one, two = m.a(x), m.b(x)
        share = m.f((one + two).mean((2, 3))).view(-1, 2, 8).softmax(1)
        return m.o(one * share[:, 0, :, None, None] + two * share[:, 1, :, None, None])

    model = net(run, a=conv(3, 8), b=conv(3, 8), f=nn.Linear(8, 16), o=conv(8, 4))
    pruned = prune(model, (image(),), criterion="random")

    slots = pruned.analysis.unit_of("a.weight", 0, 3).slots
    assert ("f.weight", 0, (3, 11)) in slots
    assert pruned.proof.outcome == "proved"


def test_picking_and_counting_by_data_pins():
    """one_hot of the largest position, gather by rank: along the width itself nothing may go."""
    for move in (
        lambda y: F.one_hot(y.argmax(-1), 8) + y,
        lambda y: y.gather(1, y.argsort(1)),
    ):
        analysis = analyze(between_features(move), (noise(2, 8),))
        assert analysis.groups == ()
        assert analysis.unknown == ()


RANKED = {
    "max": lambda y, d: y.max(d)[0],
    "max keepdim": lambda y, d: y.max(d, keepdim=True)[0].squeeze(d),
    "min": lambda y, d: torch.min(y, d).values,
    "median": lambda y, d: y.median(d).values,
    "kthvalue": lambda y, d: y.kthvalue(2, d).values,
    "topk": lambda y, d: y.topk(2, dim=d).values.sum(d),
    "sort": lambda y, d: y.sort(d).values.narrow(d, 1, 2).sum(d),
    "stable sort": lambda y, d: y.sort(dim=d, stable=True).values.narrow(d, 0, 2).sum(d),
    "prod": lambda y, d: y.prod(d),
    "argmax": lambda y, d: y.argmax(d).float(),
}


@pytest.mark.parametrize("name", RANKED)
def test_what_is_chosen_along_another_axis_leaves_channels_removable(name):
    """The largest value over time, as TextCNN and PointNet pool: channels stay channels."""
    model = net(
        lambda m, x: m.b(RANKED[name](m.a(x).tanh(), 2)),
        a=nn.Conv1d(3, 8, 3, padding=1),
        b=nn.Linear(8, 4),
    )
    pruned = prune(model, (noise(2, 3, 9),), criterion="random")

    (group,) = pruned.plan.groups
    assert (group.width, len(group.keep)) == (8, 4)
    assert pruned.proof.outcome == "proved"


@pytest.mark.parametrize("name", [n for n in RANKED if n.split()[0] not in ("max", "min")])
def test_what_is_chosen_among_channels_pins_them(name):
    """A channel that goes could have been the one that is chosen (see below for extremes)."""
    model = net(
        lambda m, x: m.b(RANKED[name](m.a(x).tanh(), 1)),
        a=nn.Conv1d(3, 8, 3, padding=1),
        b=nn.Linear(9, 4),
    )
    analysis = analyze(model, (noise(2, 3, 9),))

    assert [group.name for group in analysis.groups] == []
    assert analysis.unknown == ()


EXTREMES = {
    "amax": lambda y: y.amax(1, keepdim=True),
    "amin": lambda y: y.amin(1, keepdim=True),
    "max": lambda y: y.max(1, keepdim=True)[0],
    "min": lambda y: torch.min(y, dim=1, keepdim=True).values,
}


@pytest.mark.parametrize("name", EXTREMES)
def test_an_extreme_over_channels_hears_a_removed_one_as_zero(name):
    """Spatial attention: channels go, and the largest is that of the kept ones and 0."""

    def run(m, x, mask=None):
        y = m.a(x) if mask is None else m.a(x) * mask
        told = torch.cat([EXTREMES[name](y), y.mean(1, keepdim=True)], 1)
        return m.b(y * m.g(told).sigmoid())

    model = net(run, a=conv(3, 8), g=conv(2, 1), b=conv(8, 4))
    with torch.no_grad():
        # Of one sign, so that a removed channel's 0 is the extreme.
        model.a.bias.fill_(-9.0 if "max" in name else 9.0)
    pruned = prune(model, (image(),), keep_fraction=0.5)
    assert pruned.proof.outcome == "proved", pruned.proof.why
    mask = torch.zeros(1, 8, 1, 1)
    mask[:, next(list(a.keep) for a in pruned.plan.axes if a.parameter == "a.weight")] = 1.0

    x = image()
    assert torch.allclose(pruned.model(x), model(x, mask), atol=1e-4)
    again = prune(pruned.model, (x,), keep_fraction=0.5)
    limits = [n for n in again.model.graph.nodes if "clamp" in str(n.target)]
    assert len(limits) == 1


def test_the_places_of_a_maximum_keep_the_channels():
    """Which channel is the largest is a number that a removed channel would change: none goes."""

    def run(m, x):
        values, places = m.a(x).max(1, keepdim=True)
        return m.b(m.a(x)) + values * places

    analysis = analyze(net(run, a=conv(3, 8), b=conv(8, 4)), (image(),))

    assert [group.name for group in analysis.groups] == []
    assert any(pin.reason == "a statistic is taken over this axis" for pin in analysis.pins)
