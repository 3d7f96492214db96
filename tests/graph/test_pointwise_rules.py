"""Element by element: labels that meet are joined, sizes of 1 and scalars impose nothing."""

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
    randomised,
)
from torch import nn

from edgeprune.graph.analysis import analyze


@pytest.mark.parametrize(
    "op",
    [
        F.hardswish,
        F.silu,
        F.gelu,
        F.elu,
        F.softplus,
        lambda y: F.leaky_relu(y, 0.2),
        lambda y: F.hardtanh(y, -0.5, 0.5),
        lambda y: y.clamp(-1, 1) * 2 - y.abs().sqrt(),
        lambda y: torch.where(y > 0, y, 0.5),
        lambda y: y.masked_fill(y < 0, 0.3),
        lambda y: torch.lerp(y, y.sigmoid(), 0.3),
        lambda y: torch.addcmul(y, y.tanh(), y.sigmoid()),
        lambda y: torch.maximum(y, -y) ** 2,
        lambda y: F.hardsigmoid(y, inplace=True) + F.relu6(y),
        lambda y: (y.double() * 2).float(),
    ],
)
def test_pointwise_ops_keep_places(op):
    """Feature 3 in is feature 3 out, also where f(0) is not 0."""
    pruned = pruned_like_silenced(between_features(op, 6, 6), noise(2, 8))

    slots = {("a.weight", 0, (3,)), ("a.bias", 0, (3,)), ("b.weight", 1, (3,))}
    assert set(pruned.analysis.unit_of("a.weight", 0, 3).slots) == slots


@pytest.mark.parametrize("slopes", [1, 8])
def test_prelu_has_its_slopes_along_channels(slopes):
    """A slope a channel lies along dim 1, whatever follows; one slope for all is no width."""
    model = net(lambda m, x: m.b(m.p(m.a(x))), a=conv(3, 8), p=nn.PReLU(slopes), b=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    parameters = {s[0] for s in pruned.analysis.unit_of("a.weight", 0, 3).slots}
    assert ("p.weight" in parameters) == (slopes == 8)


def test_prelu_over_tokens_is_not_over_features():
    """(B, 5, 6) with five slopes: they lie along the tokens and stay."""
    model = net(lambda m, x: m.b(m.p(m.a(x))), a=nn.Linear(8, 6), p=nn.PReLU(5), b=nn.Linear(6, 4))

    assert pruned_like_silenced(model, noise(2, 5, 8)).model.p.weight.shape == (5,)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1)])
def test_bare_scales_go_with_their_channel(shape):
    """LayerScale on a residual branch: its entry 3 goes with channel 3."""

    def run(m, x):
        y = m.a(x)
        return m.c(y + m.g * m.b(y))

    model = net(run, a=conv(3, 8), g=param(*shape), b=conv(8, 8), c=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    assert ("g", shape.index(8), (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


def test_two_makers_meet_in_a_sum():
    """a(x) + b(x) across a broadcast: (B, 8, 1, 1) beside (B, 8, 6, 6)."""

    def run(m, x):
        return m.c(m.a(x) * m.b(x.mean((2, 3)))[:, :, None, None])

    model = net(run, a=conv(3, 8), b=nn.Linear(3, 8), c=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    assert ("b.weight", 0, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


def test_numbers_from_shapes_stay_dense():
    """y / sqrt(width) was written with the dense width, and stays so."""
    model = between_features(lambda y: y / y.size(-1) ** 0.5, 6, 6)

    pruned_like_silenced(model, noise(2, 8))


def test_dropout_does_nothing_in_eval():
    """Every kind of dropout is passed through."""
    model = net(
        lambda m, x: m.b(m.f(m.e(m.d(m.a(x))))),
        a=conv(3, 8),
        d=nn.Dropout2d(0.5),
        e=nn.AlphaDropout(0.1),
        f=nn.Dropout(0.2, inplace=True),
        b=conv(8, 4),
    )
    pruned_like_silenced(model, image())


def test_several_outputs_in_a_structure():
    """Each output is pinned; the shared width goes; dict, list and None keep their places."""
    model = net(
        lambda m, x: {"b": m.b(m.a(x)), "rest": [m.c(m.a(x)), None]},
        a=conv(3, 8),
        b=conv(8, 4),
        c=conv(8, 5),
    )
    pruned = pruned_like_silenced(model, image())

    output = pruned.model(image())
    assert set(output) == {"b", "rest"}
    assert output["rest"][1] is None
    pinned = {pin.parameter for pin in pruned.analysis.pins if pin.reason.endswith("of the model")}
    assert {"b.weight", "c.weight"} <= pinned


def test_several_inputs_and_keywords():
    """Two inputs, one by name, and a number: the shrunk model takes the same call."""
    from edgeprune.surgery.prune import prune

    model = randomised(
        net(
            lambda m, x, *, other, scale: m.c(m.a(x) * scale + m.b(other)),
            a=nn.Linear(8, 6),
            b=nn.Linear(5, 6),
            c=nn.Linear(6, 4),
        )
    )
    kwargs = {"other": noise(3, 5), "scale": 2.0}
    pruned = prune(model, (noise(3, 8),), kwargs)

    assert pruned.proof.outcome == "proved"
    assert pruned.model(noise(4, 8), other=noise(4, 5), scale=2.0).shape == (4, 4)


def test_a_part_computed_without_gradient():
    """torch.no_grad() inside forward changes nothing."""

    def run(m, x):
        with torch.no_grad():
            y = m.a(x)
        return m.b(y.tanh())

    pruned_like_silenced(net(run, a=nn.Linear(8, 6), b=nn.Linear(6, 4)), noise(2, 8))


def test_no_label_for_a_width_that_nothing_makes():
    """Data alone has no units."""
    assert analyze(between(lambda y: y * 0 + 1), (image(),)).groups != ()
