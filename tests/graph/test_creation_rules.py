"""Tensors made in forward: their written sizes follow what meets them."""

from __future__ import annotations

import copy

import torch
from small_nets import between, conv, image, net, noise, param, pruned_like_silenced
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune


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


def test_positions_counted_in_forward_pin():
    """arange(8) numbers the channels: removing one would renumber the rest."""
    for number in (
        lambda y: torch.arange(8.0).view(1, 8, 1, 1),
        lambda y: torch.arange(y.shape[1]).view(1, -1, 1, 1),
        lambda y: torch.linspace(0, 1, 8).view(8, 1, 1),
    ):
        analysis = analyze(between(lambda y, n=number: y * n(y)), (image(),))
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


def tnet(m, x, mask=None):
    """A transform of the channels that is learned from them, plus the identity (PointNet)."""
    y = m.a(x) if mask is None else m.a(x) * mask
    by = m.f(y.amax(2)).view(-1, 8, 8) + torch.eye(8)
    return m.b(torch.bmm(y.transpose(1, 2), by))


def test_an_identity_beside_a_learned_matrix_loses_rows():
    """A channel of the transformed value is a row of the matrix and of the identity beside it."""
    model = net(tnet, a=nn.Conv1d(3, 8, 1), f=nn.Linear(8, 64), b=nn.Linear(8, 4))
    pruned = prune(model, (noise(2, 3, 9),), keep_fraction=0.5)
    assert pruned.proof.outcome == "proved", pruned.proof.why
    mask = torch.zeros(8, 1)
    mask[next(list(a.keep) for a in pruned.plan.axes if a.parameter == "a.weight")] = 1.0

    x = noise(2, 3, 9, seed=7)
    assert torch.allclose(pruned.model(x), model(x, mask), atol=1e-4)
    slots = pruned.analysis.unit_of("a.weight", 0, 1).slots
    assert ("f.weight", 0, tuple(range(8, 16))) in slots
    assert ("eye_table", 0, (1,)) in slots


def test_an_identity_follows_the_devices_and_dtypes_of_its_model():
    """What the graph created is a table of the module then: it is cast and copied with it."""
    model = net(tnet, a=nn.Conv1d(3, 8, 1), f=nn.Linear(8, 64), b=nn.Linear(8, 4))
    pruned = prune(model, (noise(2, 3, 9),), keep_fraction=0.5)
    x = noise(2, 3, 9)
    wide = copy.deepcopy(pruned.model).double()

    assert wide.eye_table.dtype == torch.float64
    assert torch.allclose(wide(x.double()).float(), pruned.model(x), atol=1e-4)
    assert set(pruned.model.state_dict()) == set(model.state_dict())


def test_an_identity_that_forward_writes_into_is_fresh_at_every_call():
    """What is added to it in place is not there the next time, in the captured or pruned model."""

    def run(m, x):
        by = torch.eye(8)
        by += m.w
        return m.b(m.a(x) @ by)

    model = net(run, a=nn.Linear(4, 8), b=nn.Linear(8, 3), w=param(8, 8))
    pruned = prune(model, (noise(2, 4),), keep_fraction=0.5)
    x = noise(2, 4, seed=7)

    for module, expected in (
        (pruned.analysis.captured.module, model(x)),
        (pruned.model, pruned.model(x)),
    ):
        for _ in range(3):
            assert torch.allclose(module(x), expected, atol=1e-6)


def test_a_large_identity_stays_an_operator():
    """A table is written into every file of the model: one of 2000 x 2000 is not made."""
    model = net(lambda m, x: m.a(x) @ torch.eye(4, 2000) @ torch.eye(2000), a=nn.Linear(4, 4))
    module = analyze(model, (noise(2, 4),)).captured.module

    assert [tuple(buffer.shape) for buffer in module.buffers()] == [(4, 2000)]
    assert sum("eye" in str(node.target) for node in module.graph.nodes) == 2
