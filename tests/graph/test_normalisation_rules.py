"""Norms: where the statistic is taken decides what can go, and whether exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import (
    between,
    between_features,
    conv,
    image,
    net,
    noise,
    param,
    pruned_like_silenced,
    require_equal,
)
from torch import nn

from edgeprune.errors import PlanError
from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, affine=False),
        nn.InstanceNorm2d(8),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    ],
)
def test_statistics_of_each_channel_let_channels_go(norm):
    """BatchNorm and InstanceNorm: channel 3 with every vector the norm has, exactly."""
    model = net(lambda m, x: m.b(m.n(m.a(x)).tanh()), a=conv(3, 8), n=norm, b=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    slots = {s[0]: s[2] for s in pruned.analysis.unit_of("a.weight", 0, 3).slots}
    vectors = {f"n.{k}" for k, v in norm.state_dict().items() if v.dim() == 1}
    assert vectors <= set(slots)
    assert {slots[name] for name in vectors} <= {(3,)}
    assert pruned.analysis.groups[0].redefines == ()


def test_statistics_of_the_batch():
    """BatchNorm without running statistics normalises by the batch it sees."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x)).relu()),
        a=conv(3, 8),
        n=nn.BatchNorm2d(8, track_running_stats=False),
        b=conv(8, 4),
    )
    pruned_like_silenced(model, image(3), dynamic_batch=False)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_is_redefined_over_what_stays(affine):
    """Mean and variance over the kept width; the group says which node changes its meaning."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))),
        a=nn.Linear(8, 6),
        n=nn.LayerNorm(6, elementwise_affine=affine),
        b=nn.Linear(6, 4),
    )
    x = noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    y = model.a(x)[..., kept]
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    if affine:
        y = y * model.n.weight[kept] + model.n.bias[kept]
    expected = y @ model.b.weight[:, kept].T + model.b.bias
    require_equal(pruned.model(x), expected)
    assert pruned.analysis.groups[0].redefines == ("layer_norm",)


def test_exact_only_forbids_redefinition():
    """With exact_only the width of a LayerNorm is pinned with its reason; other widths are not."""

    def run(m, x):
        y = m.a(x)
        return m.b(m.n(y)) + m.d(m.c(x))

    model = net(
        run,
        a=nn.Linear(8, 6),
        n=nn.LayerNorm(6),
        b=nn.Linear(6, 4),
        c=nn.Linear(8, 5),
        d=nn.Linear(5, 4),
    )
    analysis = analyze(model, (noise(2, 5, 8),), exact_only=True)

    assert [group.name for group in analysis.groups] == ["c.weight"]
    assert any("layer_norm takes its statistics" in pin.reason for pin in analysis.pins)


def test_layer_norm_over_channels_last():
    """Permuted to channels last and back, as in ConvNeXt."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        a=conv(3, 6),
        n=nn.LayerNorm(6),
        b=conv(6, 4),
    )
    pruned_like_silenced(model, image())


def test_layer_norm_beside_data_keeps_the_data_in_the_statistic():
    """cat([x, a(x)]) normalised together: what is kept of both makes the statistic."""
    model = net(
        lambda m, x: m.b(m.n(torch.cat([x, m.a(x)], -1))),
        a=nn.Linear(8, 6),
        n=nn.LayerNorm(14),
        b=nn.Linear(14, 4),
    )
    pruned_like_silenced(model, noise(2, 5, 8))


def test_layer_norm_of_data_pins_its_width():
    """The data's width stays; the next layer's does not."""
    model = net(
        lambda m, x: m.c(m.b(m.n(x))), n=nn.LayerNorm(8), b=nn.Linear(8, 6), c=nn.Linear(6, 4)
    )

    pruned = pruned_like_silenced(model, noise(2, 5, 8))
    assert [group.name for group in pruned.analysis.groups] == ["b.weight"]


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_over_channels_and_space_is_redefined_over_kept_channels(affine):
    """LayerNorm([6, 5, 5]): mean and variance of the kept channels and all of the space."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))),
        a=conv(3, 6),
        n=nn.LayerNorm([6, 5, 5], elementwise_affine=affine),
        b=conv(6, 4),
    )
    x = image(3, size=5)
    pruned = prune(model, (x,), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    y = F.layer_norm(model.a(x)[:, kept], [len(kept), 5, 5])
    if affine:
        y = y * model.n.weight[kept] + model.n.bias[kept]
    require_equal(pruned.model(x), F.conv2d(y, model.b.weight[:, kept], model.b.bias, padding=1))
    assert pruned.proof.outcome == "proved"
    assert pruned.analysis.groups[0].redefines == ("layer_norm",)


def test_layer_norm_over_the_head_dim_keeps_heads_exact():
    """Normalised within each head: whole heads go and no statistic is redefined."""

    def run(m, x):
        y = m.n(m.a(x).unflatten(-1, (3, 4)))
        return m.b(y.flatten(-2))

    model = net(
        run,
        a=nn.Linear(8, 12),
        n=nn.LayerNorm(4, elementwise_affine=False),
        b=nn.Linear(12, 5),
    )
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert pruned.analysis.unit_of("a.weight", 0, 5).slots[0].positions == (4, 5, 6, 7)
    assert pruned.analysis.groups[0].redefines == ()


@pytest.mark.parametrize(("groups", "unit"), [(4, (2, 3)), (8, (3,))])
def test_group_norm_goes_by_groups(groups, unit):
    """8 channels in 4 groups: channels 2 and 3 share a statistic, so they go together."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x)).tanh()),
        a=conv(3, 8),
        n=nn.GroupNorm(groups, 8),
        b=conv(8, 4),
    )
    pruned = pruned_like_silenced(model, image())

    assert ("n.weight", 0, unit) in pruned.analysis.unit_of("a.weight", 0, 3).slots


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_of_one_group_is_redefined_over_kept_channels(affine):
    """One statistic over all channels and space, as PoolFormer's: that of the kept channels."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))),
        a=conv(3, 8),
        n=nn.GroupNorm(1, 8, affine=affine),
        b=conv(8, 4),
    )
    x = image(3)
    pruned = prune(model, (x,), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    weight, bias = (model.n.weight[kept], model.n.bias[kept]) if affine else (None, None)
    y = F.group_norm(model.a(x)[:, kept], 1, weight, bias)
    require_equal(pruned.model(x), F.conv2d(y, model.b.weight[:, kept], model.b.bias, padding=1))
    assert pruned.proof.outcome == "proved"
    assert pruned.analysis.groups[0].redefines == ("group_norm",)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(1, 8), nn.LayerNorm([8, 6, 6])], ids=["group", "layer"]
)
def test_exact_only_pins_norms_over_channels_and_space(norm):
    """Where no statistic may be redefined, one over all channels is all or nothing."""
    model = net(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 8), n=norm, b=conv(8, 4))
    analysis = analyze(model, (image(),), exact_only=True)

    assert analysis.groups == ()
    assert any("_norm" in pin.reason for pin in analysis.pins)


def test_a_group_norm_of_one_group_over_time_and_without_space():
    """(N, C, T) as in speech, and (N, C): the same law."""
    for model, x in (
        (
            net(
                lambda m, x: m.b(m.n(m.a(x)).relu()),
                a=nn.Conv1d(3, 8, 3),
                n=nn.GroupNorm(1, 8),
                b=nn.Conv1d(8, 4, 3),
            ),
            noise(2, 3, 9),
        ),
        (
            net(
                lambda m, x: m.b(m.n(m.a(x))),
                a=nn.Linear(8, 8),
                n=nn.GroupNorm(1, 8),
                b=nn.Linear(8, 4),
            ),
            noise(2, 8),
        ),
    ):
        pruned = prune(model, (x,), criterion="random")
        assert [group.width for group in pruned.analysis.groups] == [8]
        assert pruned.proof.outcome == "proved"


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), noise(2, 3, 9)),
        (nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), noise(2, 3, 4, 4, 4)),
        (nn.Conv1d(3, 8, 3, padding=1), nn.InstanceNorm1d(8, affine=True), noise(2, 3, 9)),
        (nn.Conv3d(3, 8, 3, padding=1), nn.InstanceNorm3d(8), noise(2, 3, 4, 4, 4)),
    ],
)
def test_norms_of_each_channel_in_one_and_three_dims(layer, norm, x):
    """Over time or volume as over an image: channels go one by one, exactly."""
    model = net(lambda m, x: m.b(m.n(m.a(x)).tanh()), a=layer, n=norm, b=type(layer)(8, 4, 1))
    pruned = pruned_like_silenced(model, x)

    assert [(g.width, g.redefines) for g in pruned.analysis.groups] == [(8, ())]


def test_batch_norm_of_features():
    """BatchNorm1d on (N, C)."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x)).tanh()),
        a=nn.Linear(8, 6),
        n=nn.BatchNorm1d(6),
        b=nn.Linear(6, 4),
    )
    pruned_like_silenced(model, noise(3, 8))


@pytest.mark.parametrize(
    "options", [{}, {"eps": 1e-2}, {"elementwise_affine": False, "eps": 1e-3}], ids=str
)
def test_rms_norm_is_exact(options):
    """aten.rms_norm over 6 features, 3 kept: the sum of the kept squares by 6, plus eps."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))),
        a=nn.Linear(8, 6),
        n=nn.RMSNorm(6, **options),
        b=nn.Linear(6, 4),
    )
    x = noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    y = model.a(x)[..., kept]
    eps = options.get("eps", torch.finfo(torch.float32).eps)
    y = y * torch.rsqrt(y.square().sum(-1, keepdim=True) / 6 + eps)
    y = y * model.n.weight[kept] if model.n.elementwise_affine else y
    require_equal(pruned.model(x), y @ model.b.weight[:, kept].T + model.b.bias)
    assert pruned.proof.outcome == "proved"
    assert pruned.analysis.groups[0].redefines == ()
    assert len(analyze(model, (x,), exact_only=True).groups) == 1


def test_rms_norm_over_the_head_dim_keeps_heads_exact():
    """qk-norm: one weight of the head dim serves every head; whole heads go."""

    def run(m, x):
        return m.b(m.n(m.a(x).unflatten(-1, (3, 4))).flatten(-2))

    model = net(run, a=nn.Linear(8, 12), n=nn.RMSNorm(4), b=nn.Linear(12, 5))
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert pruned.analysis.unit_of("a.weight", 0, 5).slots[0].positions == (4, 5, 6, 7)


def test_rms_norm_over_channels_and_space_is_exact():
    """RMSNorm([6, 5, 5]): kept channels over the count of all."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 6), n=nn.RMSNorm([6, 5, 5], 1e-5), b=conv(6, 4)
    )
    x = image(3, size=5)
    pruned = prune(model, (x,), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    y = model.a(x)[:, kept]
    y = y * torch.rsqrt(y.square().sum((1, 2, 3), keepdim=True) / 150 + 1e-5) * model.n.weight[kept]
    require_equal(pruned.model(x), F.conv2d(y, model.b.weight[:, kept], model.b.bias, padding=1))


def test_group_norm_and_grouped_convolution_agree_on_units():
    """Groups of 2 in a norm and of 4 in a convolution: units of 4 channels."""
    model = net(
        lambda m, x: m.c(m.b(m.n(m.a(x))).tanh()),
        a=conv(3, 8),
        n=nn.GroupNorm(4, 8),
        b=conv(8, 8, groups=2),
        c=conv(8, 4),
    )
    pruned = pruned_like_silenced(model, image())

    assert ("a.weight", 0, (4, 5, 6, 7)) in pruned.analysis.unit_of("a.weight", 0, 5).slots


def test_root_mean_square_written_out_is_exact():
    """x / sqrt(mean x^2): the mean is a sum over what is kept by the dense count, nothing else."""

    def run(m, x):
        y = m.a(x)
        return m.b(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * m.g)

    model = net(run, a=nn.Linear(8, 6), g=param(6), b=nn.Linear(6, 4))
    x = noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    y = model.a(x)[..., kept]
    y = y * torch.rsqrt(y.pow(2).sum(-1, keepdim=True) / 6 + 1e-6) * model.g[kept]
    require_equal(pruned.model(x), y @ model.b.weight[:, kept].T + model.b.bias)
    assert pruned.proof.outcome == "proved"


@pytest.mark.parametrize("statistic", [torch.logsumexp, torch.prod])
def test_a_statistic_of_the_width_pins_it(statistic):
    """What is told of all channels together changes with any of them: pinned, with the reason."""
    model = between_features(lambda y: y / statistic(y, -1, keepdim=True))

    with pytest.raises(PlanError, match="a statistic is taken over this axis"):
        prune(model, (noise(2, 8),))


@pytest.mark.parametrize("order", [1, 2, float("inf")])
def test_a_norm_of_the_width_hears_what_stays(order):
    """|y| over the kept features, as if the removed ones were zero: exact."""
    model = between_features(lambda y: y / y.norm(p=order, dim=1, keepdim=True), 6, 6)
    x = noise(3, 8)
    pruned = prune(model, (x,), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    y = model.a(x)[:, kept]
    y = y / torch.linalg.vector_norm(y, order, 1, keepdim=True)
    require_equal(pruned.model(x), y @ model.b.weight[:, kept].T + model.b.bias)


def test_norms_over_space_let_channels_go():
    """Global response normalisation: a norm over space, a mean of it over channels."""

    def respond(y):
        strength = y.norm(p=2, dim=(2, 3), keepdim=True)
        return y * strength / (strength.mean(1, keepdim=True) + 1e-6)

    pruned = prune(between(respond), (image(),), criterion="random")

    assert pruned.proof.outcome == "proved"
    assert [group.width for group in pruned.analysis.groups] == [8]
