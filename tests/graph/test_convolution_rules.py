"""Convolutions: ordinary, grouped, depthwise and transposed, in one to three dims."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from small_nets import conv, image, net, noise, param, pruned_like_silenced, randomised
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune


def slots(pruned, parameter="a.weight", position=3):
    """What goes with one output position of a layer."""
    return pruned.analysis.unit_of(parameter, 0, position).slots


@pytest.mark.parametrize(("layer", "ndim"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_ordinary_convolutions(layer, ndim):
    """Channel 3 is row 3 of the maker with its bias, and column 3 of the reader."""
    model = net(lambda m, x: m.b(m.a(x).relu()), a=layer(3, 8, 3, padding="same"), b=layer(8, 4, 1))
    pruned = pruned_like_silenced(model, noise(2, 3, *[4] * ndim))

    expected = {("a.weight", 0, (3,)), ("a.bias", 0, (3,)), ("b.weight", 1, (3,))}
    assert set(slots(pruned)) == expected


def test_grouped_convolution_goes_by_groups():
    """8 to 12 channels in 4 groups: inputs 2-3 with outputs 3-5."""
    model = net(
        lambda m, x: m.c(m.b(m.a(x)).relu()),
        a=conv(3, 8),
        b=conv(8, 12, groups=4),
        c=conv(12, 4),
    )
    pruned = pruned_like_silenced(model, image())

    assert slots(pruned)[0].positions == (2, 3)
    assert ("b.weight", 0, (3, 4, 5)) in slots(pruned)
    assert ("c.weight", 1, (3, 4, 5)) in slots(pruned)


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_convolution_with_multiplier(multiplier, padding):
    """Channel 3 with its `multiplier` filters; the group says that it is depthwise, however the
    padding is spelled."""
    wide = 8 * multiplier
    model = net(
        lambda m, x: m.c(m.b(m.a(x)).relu()),
        a=conv(3, 8),
        b=nn.Conv2d(8, wide, 3, padding=padding, groups=8),
        c=conv(wide, 4),
    )
    pruned = pruned_like_silenced(model, image())

    filters = tuple(range(3 * multiplier, 4 * multiplier))
    assert ("b.weight", 0, filters) in slots(pruned)
    assert pruned.analysis.groups[0].depthwise


def test_depthwise_convolution_of_data_stays():
    """Its groups are the data's channels, so its outputs cannot go."""
    model = net(lambda m, x: m.c(m.b(x)), b=conv(3, 6, groups=3), c=conv(6, 4))

    assert analyze(model, (image(),)).groups == ()


@pytest.mark.parametrize(
    ("layer", "before", "ndim"),
    [(nn.ConvTranspose1d, nn.Conv1d, 1), (nn.ConvTranspose2d, nn.Conv2d, 2)],
)
def test_transposed_convolution_has_its_dims_swapped(layer, before, ndim):
    """Input channel 3 is row 3 of a transposed weight, output channel 3 its column 3."""
    model = net(
        lambda m, x: m.c(m.b(m.a(x)).relu()),
        a=before(3, 8, 3),
        b=layer(8, 6, 2, 2),
        c=before(6, 4, 1),
    )
    pruned = pruned_like_silenced(model, noise(2, 3, *[5] * ndim))

    assert ("b.weight", 0, (3,)) in slots(pruned)
    assert ("b.weight", 1, (3,)) in pruned.analysis.unit_of("c.weight", 1, 3).slots


@pytest.mark.parametrize(("out", "groups"), [(8, 4), (12, 4), (4, 4), (8, 8)])
def test_grouped_transposed_convolution(out, groups):
    """Group g takes inputs g * 8 / groups and makes outputs g * out / groups, with their biases."""
    model = net(
        lambda m, x: m.c(m.b(m.a(x)).relu()),
        a=conv(3, 8),
        b=nn.ConvTranspose2d(8, out, 2, 2, groups=groups),
        c=conv(out, 4),
    )
    pruned = pruned_like_silenced(model, image())

    group, wide = 3 // (8 // groups), out // groups
    made = tuple(range(group * wide, (group + 1) * wide))
    assert ("b.bias", 0, made) in slots(pruned)
    assert ("c.weight", 1, made) in slots(pruned)


def test_a_shared_layer_is_cut_once():
    """One convolution called twice: its input and its output are one width."""
    model = net(
        lambda m, x: m.c(m.b(m.b(m.a(x)).relu()).relu()), a=conv(3, 6), b=conv(6, 6), c=conv(6, 4)
    )
    pruned = pruned_like_silenced(model, image())

    assert {("b.weight", 0, (3,)), ("b.weight", 1, (3,))} <= set(slots(pruned))


def test_residual_block_ties_its_branch():
    """x + f(x): the width of the sum is one group over maker, branch and reader."""

    def run(m, x):
        y = m.a(x)
        return m.d(y + m.c(F.relu(m.b(y))))

    model = net(run, a=conv(3, 8), b=conv(8, 6), c=conv(6, 8), d=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    assert [group.width for group in pruned.analysis.groups] == [8, 6]
    assert ("c.weight", 0, (3,)) in slots(pruned)


def test_a_filter_computed_from_data_pins():
    """A kernel that a layer computes has no fixed positions to remove: nothing, or right."""

    def run(m, x):
        kernel = m.k(x.mean((0, 2, 3))).view(8, 8, 1, 1)
        return m.c(F.conv2d(m.a(x), kernel)) + m.d(m.e(x))

    model = net(run, a=conv(3, 8), k=nn.Linear(3, 64), c=conv(8, 4), e=conv(3, 6), d=conv(6, 4))
    pruned = prune(model, (image(),))

    assert [group.name for group in pruned.analysis.groups] == ["e.weight"]


def test_bare_weights_in_functional_calls():
    """F.conv2d with parameters of the net itself is no different."""
    model = randomised(
        net(
            lambda m, x: F.conv2d(F.conv2d(x, m.w, m.v).relu(), m.u),
            w=param(8, 3, 3, 3),
            v=param(8),
            u=param(4, 8, 1, 1),
        )
    )
    pruned = prune(model, (image(),))

    assert pruned.proof.outcome == "proved"
    assert set(slots(pruned, "w")) == {("w", 0, (3,)), ("v", 0, (3,)), ("u", 1, (3,))}


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 1, 1), nn.ConvTranspose1d(3, 1, 1)])
def test_a_kernel_of_one_position_leaves_features_where_they_are(layer):
    """Three feature vectors weighted by numbers: the convolution runs over features, and passes."""
    model = net(
        lambda m, x: m.b(m.mix(m.a(x)).flatten(1)),
        a=nn.Linear(6, 8),
        mix=randomised(layer),
        b=nn.Linear(8, 4),
    )
    pruned = pruned_like_silenced(model, noise(2, 3, 6))

    assert slots(pruned) == (
        ("a.weight", 0, (3,)),
        ("a.bias", 0, (3,)),
        ("b.weight", 1, (3,)),
    )


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}])
def test_a_step_or_padding_along_features_pins_them(options):
    """One position wide, but others than all of them, or new ones, come out."""
    model = net(
        lambda m, x: m.b(m.mix(m.a(x)).mean(2)),
        a=nn.Linear(6, 8),
        mix=nn.Conv1d(3, 2, 1, **options),
        b=nn.Linear(2, 4),
    )

    assert "a convolution slides over this axis" in {
        pin.reason for pin in analyze(model, (noise(2, 3, 6),)).pins
    }


@pytest.mark.parametrize("transposed", [False, True])
def test_inside_groups_where_whole_ones_cannot_go(transposed):
    """Two groups of 4 that channel shuffle mixes: a channel of each goes, the groups stay."""
    layer = nn.ConvTranspose2d if transposed else nn.Conv2d
    grouped = randomised(layer(8, 12, 3, padding=1, groups=2))

    def run(m, x):
        y = m.a(x)
        return m.c(m.b(y + y.roll(4, 1)).relu())

    pruned = pruned_like_silenced(net(run, a=conv(3, 8), b=grouped, c=conv(12, 4)), image())

    assert {("a.weight", 0, (1, 5)), ("b.weight", *((0, (1, 5)) if transposed else (1, (1,))))} <= {
        *slots(pruned, position=1)
    }
    assert pruned.model.b.weight.shape[:2] == ((4, 3) if transposed else (6, 2))
    assert pruned.model.c.weight.shape[1] == 6
