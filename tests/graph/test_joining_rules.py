"""Joining: what lies side by side keeps its place, what lies on top of each other goes together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from small_nets import (
    between,
    between_features,
    conv,
    image,
    net,
    noise,
    pruned_like_silenced,
)
from torch import nn

from edgeprune.graph.analysis import analyze


def test_cat_lays_widths_side_by_side_in_any_order():
    """cat([b, a]): a's channel 1 is heard behind b's six, at 7."""
    model = net(
        lambda m, x: m.c(torch.cat([m.b(x), m.a(x)], 1)),
        a=conv(3, 4),
        b=conv(3, 6),
        c=conv(10, 4),
    )
    pruned = pruned_like_silenced(model, image())

    assert ("c.weight", 1, (7,)) in pruned.analysis.unit_of("a.weight", 0, 1).slots


def test_cat_with_data_keeps_the_data():
    """cat([x, a(x)]): the reader's positions 0-2 are data and stay, the rest may go."""
    model = net(lambda m, x: m.c(torch.cat([x, m.a(x)], 1)), a=conv(3, 4), c=conv(7, 4))
    pruned = pruned_like_silenced(model, image())

    assert ("c.weight", 1, (3,)) in pruned.analysis.unit_of("a.weight", 0, 0).slots
    kept = next(a.keep for a in pruned.plan.axes if (a.parameter, a.dim) == ("c.weight", 1))
    assert kept[:3] == (0, 1, 2)


def test_cat_of_a_value_with_its_own_flip():
    """cat([y, y.flip]): channel 1 of 4 is heard at 1 and at 4 + 2."""
    pruned = pruned_like_silenced(between(lambda y: torch.cat([y, y.flip(1)], 1), 4, 8), image())

    assert ("b.weight", 1, (1, 6)) in pruned.analysis.unit_of("a.weight", 0, 1).slots


def test_cat_along_rows_joins_channels():
    """Two maps on top of each other in space have the same channels: one unit of both."""
    model = net(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 2)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 4)
    )
    pruned = pruned_like_silenced(model, image())

    assert ("b.weight", 0, (2,)) in pruned.analysis.unit_of("a.weight", 0, 2).slots


def test_dense_connections():
    """Each layer reads all before it, as in DenseNet: a channel has one place in each reader."""

    def run(m, x):
        one = m.a(x)
        two = m.b(F.relu(one))
        three = m.c(F.relu(torch.cat([one, two], 1)))
        return m.d(torch.cat([one, two, three], 1))

    model = net(run, a=conv(3, 4), b=conv(4, 2), c=conv(6, 2), d=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    slots = pruned.analysis.unit_of("b.weight", 0, 1).slots
    assert ("c.weight", 1, (5,)) in slots
    assert ("d.weight", 1, (5,)) in slots


def test_stack_joins_what_is_stacked():
    """Stacked on a new dim and summed over it: a's channel 3 with b's."""
    model = net(
        lambda m, x: m.c(torch.stack([m.a(x), m.b(x)], 1).sum(1)),
        a=conv(3, 4),
        b=conv(3, 4),
        c=conv(4, 4),
    )
    pruned = pruned_like_silenced(model, image())

    assert ("b.weight", 0, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


def test_stack_on_the_last_dim_interleaves():
    """stack(-1).flatten: a's and b's feature 1 of 4 are heard at 2 and 3."""
    model = net(
        lambda m, x: m.c(torch.stack([m.a(x), m.b(x)], -1).flatten(1)),
        a=nn.Linear(8, 4),
        b=nn.Linear(8, 4),
        c=nn.Linear(8, 4),
    )
    pruned = pruned_like_silenced(model, noise(2, 8))

    assert ("c.weight", 1, (2, 3)) in pruned.analysis.unit_of("a.weight", 0, 1).slots


def test_glu_pairs_value_and_gate():
    """glu of 12: feature 2 with its gate 8; written with chunk it is the same."""
    as_op = between_features(lambda y: F.glu(y, 1), 12, 6)
    written = between_features(lambda y: y.chunk(2, -1)[0] * y.chunk(2, -1)[1].sigmoid(), 12, 6)

    for model in (as_op, written):
        pruned = pruned_like_silenced(model, noise(2, 8))
        assert pruned.analysis.unit_of("a.weight", 0, 2).slots[0].positions == (2, 8)


def test_a_box_beside_data_stays_rectangular():
    """Heads x features with a data token in front: only whole columns could go, or nothing."""
    model = net(
        lambda m, x: m.b(torch.cat([x.view(-1, 2, 4), m.a(x).view(-1, 3, 4)], 1)),
        a=nn.Linear(8, 12),
        b=nn.Linear(4, 5),
    )

    assert analyze(model, (noise(2, 8),)).groups == ()


def test_a_part_without_elements_pins_nothing():
    """No class tokens are laid before the rotated ones: heads go as if nothing was laid there."""

    def run(m, x):
        y = m.a(x).unflatten(-1, (4, 4)).transpose(1, 2)
        whole = torch.cat([y[:, :, :0], y[:, :, 0:] * m.t], 2)
        return m.b(whole.transpose(1, 2).flatten(2))

    model = net(run, a=nn.Linear(4, 16), b=nn.Linear(16, 3), t=noise(5, 4))
    pruned = pruned_like_silenced(model, noise(2, 5, 4))

    assert [(group.kind, group.width) for group in pruned.analysis.groups] == [("head", 4)]
