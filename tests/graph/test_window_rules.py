"""Pooling, resizing and sampling: space changes, channels pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import between, between_features, conv, image, net, noise, pruned_like_silenced
from torch import nn

from edgeprune.graph.analysis import analyze


@pytest.mark.parametrize(
    "op",
    [
        lambda y: F.max_pool2d(y, 2),
        lambda y: F.avg_pool2d(y, 3, stride=1, padding=1),
        lambda y: F.adaptive_avg_pool2d(y, 3),
        lambda y: F.adaptive_max_pool2d(y, 2),
        lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
        lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
        lambda y: F.interpolate(y, size=(7, 7), mode="nearest"),
        lambda y: F.interpolate(y, size=(4, 4), mode="bilinear", antialias=True),
    ],
)
def test_channels_pass_through_windows(op):
    """Channel 3 in is channel 3 out."""
    pruned = pruned_like_silenced(between(op), image())

    assert ("b.weight", 1, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


def test_windows_in_one_and_three_dims():
    """Conv1d with its pools, Conv3d with its own."""
    line = net(
        lambda m, x: m.b(F.adaptive_avg_pool1d(F.max_pool1d(m.a(x), 2), 3)),
        a=nn.Conv1d(3, 8, 3),
        b=nn.Conv1d(8, 4, 1),
    )
    cube = net(
        lambda m, x: m.b(F.avg_pool3d(F.max_pool3d(m.a(x), 2), 1)),
        a=nn.Conv3d(3, 8, 1),
        b=nn.Conv3d(8, 4, 1),
    )

    pruned_like_silenced(line, noise(2, 3, 12))
    pruned_like_silenced(cube, noise(2, 3, 4, 4, 4))


@pytest.mark.parametrize(
    "op",
    [
        lambda y: F.avg_pool2d(y[:, None], (2, 1))[:, 0],
        lambda y: F.max_pool2d(y[:, None], (3, 1), stride=(2, 1), padding=(1, 0))[:, 0],
        lambda y: F.avg_pool1d(y.transpose(1, 2), 2).transpose(1, 2),
    ],
)
def test_an_axis_that_the_window_does_not_slide_over_passes(op):
    """Tokens are pooled, features go on: one kernel position, stride 1, no padding."""
    pruned = pruned_like_silenced(between_features(op), noise(2, 6, 8))

    assert ("b.weight", 1, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


@pytest.mark.parametrize(
    "op",
    [
        lambda y: F.avg_pool2d(y[:, None], 1, stride=(1, 2))[:, 0],
        lambda y: F.max_pool2d(y[:, None], (2, 1), stride=1, padding=(1, 0))[:, 0, :, ::2],
        lambda y: F.avg_pool2d(y[:, None], (1, 3), stride=1, padding=(0, 1))[:, 0],
    ],
)
def test_an_axis_that_is_strided_or_padded_is_mixed_or_stays_right(op):
    """A stride leaves features out: what goes is proved, or pinned."""
    read = op(torch.zeros(1, 6, 8)).shape[-1]
    analysis = analyze(between_features(op, read=read), (noise(2, 6, 8),))

    if analysis.groups:
        pruned_like_silenced(between_features(op, read=read), noise(2, 6, 8))


def test_patches_repeat_a_channel_for_each_kernel_position():
    """unfold with a 2x2 kernel: channel 1 of 4 is heard at 4-7."""
    model = net(
        lambda m, x: m.b(F.unfold(m.a(x), 2, stride=2).transpose(1, 2)),
        a=conv(3, 4),
        b=nn.Linear(16, 5),
    )
    pruned = pruned_like_silenced(model, image())

    assert ("b.weight", 1, (4, 5, 6, 7)) in pruned.analysis.unit_of("a.weight", 0, 1).slots


def test_sampling_at_computed_places():
    """A spatial transformer: channels may go, the numbers of the grid may not."""

    def run(m, x):
        theta = m.t(x.mean((2, 3))).view(-1, 2, 3).tanh()
        grid = F.affine_grid(theta, [x.shape[0], 8, 6, 6], align_corners=False)
        return m.b(F.grid_sample(m.a(x), grid, align_corners=False))

    model = net(run, a=conv(3, 8), t=nn.Linear(3, 6), b=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    assert [group.name for group in pruned.analysis.groups] == ["a.weight"]


def test_a_window_over_features_pins_them():
    """Pooled along the last dim of tokens, features are mixed with their neighbours."""
    analysis = analyze(between_features(lambda y: F.max_pool1d(y, 2), 8, 4), (noise(2, 5, 8),))

    assert analysis.groups == ()
    assert any(pin.reason == "a window slides over this axis" for pin in analysis.pins)


def test_squeeze_and_excite():
    """Pool, two 1x1 convolutions, sigmoid gate: the gate's row 3 goes with channel 3."""

    def run(m, x):
        y = m.a(x)
        gate = m.e(torch.tanh(m.d(F.adaptive_avg_pool2d(y, 1)))).sigmoid()
        return m.b(y * gate)

    model = net(run, a=conv(3, 8), d=conv(8, 4, 1), e=conv(4, 8, 1), b=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    slots = pruned.analysis.unit_of("a.weight", 0, 3).slots
    assert {("d.weight", 1, (3,)), ("e.weight", 0, (3,)), ("b.weight", 1, (3,))} <= set(slots)
