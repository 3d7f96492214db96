"""Tensors made in forward: their written sizes follow what meets them."""

from __future__ import annotations

import torch
from small_nets import between, conv, image, net, noise, pruned_like_silenced
from torch import nn

from edgeprune.graph.analysis import analyze


def test_constants_of_the_width_shrink_with_it():
    """zeros(1, 8, 1, 1) and ones beside y: the 8 is rewritten."""

    def run(y):
        return y * torch.ones(1, 8, 1, 1) + torch.full((8, 1, 1), 0.5) + y.new_zeros(1, 8, 1, 1)

    pruned_like_silenced(between(run), image())


def test_constants_like_a_value_follow_it():
    """zeros_like and ones_like take their size at run time."""
    pruned_like_silenced(between(lambda y: y + torch.ones_like(y) * 0.5), image())


def test_two_makers_write_into_zeros():
    """y = zeros(B, 10, ...); y[:, :4] = a; y[:, 4:] = b: as a cat."""

    def run(m, x):
        y = torch.zeros(x.shape[0], 10, 6, 6)
        y[:, :4] = m.a(x)
        y[:, 4:] = m.b(x)
        return m.c(y)

    model = net(run, a=conv(3, 4), b=conv(3, 6), c=conv(10, 4))
    pruned = pruned_like_silenced(model, image())

    assert ("c.weight", 1, (7,)) in pruned.analysis.unit_of("b.weight", 0, 3).slots


def test_zeros_that_nobody_writes_may_go():
    """Only the middle is written: the reader's other columns hear zeros, and may go too."""

    def run(m, x):
        y = torch.zeros(x.shape[0], 8, 6, 6)
        y[:, 2:6] = m.a(x)
        return m.b(y)

    pruned = pruned_like_silenced(net(run, a=conv(3, 4), b=conv(8, 4)), image())

    assert ("b.weight", 1, (3,)) in pruned.analysis.unit_of("a.weight", 0, 1).slots


def test_positions_counted_in_forward_stay_those_of_their_channels():
    """arange(8) numbers the channels: one that goes does not renumber the rest."""
    for number in (
        lambda y: torch.arange(8.0).view(1, 8, 1, 1),
        lambda y: torch.arange(float(y.shape[1])).view(1, -1, 1, 1),
        lambda y: torch.linspace(0, 1, 8).view(8, 1, 1),
    ):
        pruned = pruned_like_silenced(between(lambda y, n=number: y * n(y)), image())
        assert pruned.model.a.weight.shape[0] == 4


def test_whole_numbers_counted_in_forward_pin():
    """They may be places to read at, and these are not the channels' own: as in tables of them."""
    analysis = analyze(between(lambda y: y * torch.arange(8).view(1, 8, 1, 1)), (image(),))
    assert analysis.groups == ()


def test_a_constant_held_as_an_attribute_shrinks():
    """A tensor that is no buffer, and one written as numbers in the code."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 4)
            self.scale = torch.linspace(0.5, 2, 6)

        def forward(self, x):
            return self.b(self.a(x) * self.scale + torch.tensor([1.0, 2, 3, 4, 5, 6]))

    model = Scaled().eval()
    pruned = pruned_like_silenced(model, noise(2, 8))

    assert set(pruned.model.state_dict()) == set(model.state_dict())
