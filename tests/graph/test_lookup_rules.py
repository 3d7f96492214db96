"""Tables read by indices, and tied weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import between_features, net, noise, param, pruned_like_silenced
from torch import nn

from edgeprune.graph.analysis import analyze

IDS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(1))


def test_an_embedding_makes_its_columns():
    """Rows are chosen by data and stay; column 3 goes with the reader's column 3."""
    model = net(lambda m, i: m.b(m.e(i)), e=nn.Embedding(11, 8), b=nn.Linear(8, 4))
    pruned = pruned_like_silenced(model, IDS)

    assert set(pruned.analysis.unit_of("b.weight", 1, 3).slots) == {
        ("e.weight", 1, (3,)),
        ("b.weight", 1, (3,)),
    }


def test_a_tied_head_reads_the_width_that_the_table_makes():
    """One tensor as table and as head: its column is maker and reader, and stays one tensor."""

    def run(m, i):
        return m.h(torch.tanh(m.l(m.e(i))) + m.e(i))

    model = net(run, e=nn.Embedding(11, 8), l=nn.Linear(8, 8), h=nn.Linear(8, 11, bias=False))
    model.h.weight = model.e.weight
    pruned = pruned_like_silenced(model, IDS)

    assert pruned.model.h.weight is pruned.model.e.weight
    assert pruned.model.e.weight.shape == (11, 4)
    assert [t.same_as for t in pruned.plan.tensors if t.name == "h.weight"] == ["e.weight"]


def test_positions_of_a_learned_table():
    """Added to tokens: its rows are tokens and stay, its columns go with the width."""
    model = net(
        lambda m, i: m.b(m.e(i) + m.p + m.q(torch.arange(i.shape[1]))),
        e=nn.Embedding(11, 8),
        p=param(1, 5, 8),
        q=nn.Embedding(9, 8),
        b=nn.Linear(8, 4),
    )
    pruned = pruned_like_silenced(model, IDS)

    slots = pruned.analysis.unit_of("e.weight", 1, 3).slots
    assert {("p", 2, (3,)), ("q.weight", 1, (3,))} <= set(slots)
    assert pruned.model.p.shape == (1, 5, 4)


def test_a_class_token_in_front():
    """A parameter expanded over the batch and put in front of the tokens shares their width."""

    def run(m, x):
        tokens = torch.cat([m.c.expand(x.shape[0], -1, -1), m.a(x)], 1)
        return m.b(tokens)[:, 0] + m.b(tokens).mean(1)

    model = net(run, a=nn.Linear(8, 6), c=param(1, 1, 6), b=nn.Linear(6, 4))
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert ("c", 2, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


def test_a_table_of_biases_for_every_head():
    """Relative positions as in Swin: rows are read by number, the column is the head's."""
    where = torch.arange(25).reshape(5, 5) % 7

    def run(m, x):
        q, k, v = m.q(x).reshape(-1, 5, 3, 4, 4).permute(2, 0, 3, 1, 4)
        bias = m.t[m.i.view(-1)].view(5, 5, 4).permute(2, 0, 1)
        y = (q @ k.transpose(-2, -1) * 0.5 + bias).softmax(-1) @ v
        return m.o(y.transpose(1, 2).reshape(-1, 5, 16))

    model = net(run, q=nn.Linear(8, 48), o=nn.Linear(16, 4), t=param(7, 4), i=where)
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert ("t", 1, (1,)) in pruned.analysis.unit_of("q.weight", 0, 5).slots


def test_tokens_chosen_by_a_mask_of_the_model():
    """A boolean mask over tokens leaves the features alone."""
    keep = torch.tensor([True, False, True, True, False])
    model = net(lambda m, x: m.b(m.a(x)[:, m.k]), a=nn.Linear(8, 6), b=nn.Linear(6, 4), k=keep)

    pruned_like_silenced(model, noise(2, 5, 8))


def test_a_mask_over_samples_and_tokens_takes_both_dims():
    """y[mask], a mask (batch, tokens): one row a token that is true, features as they were."""
    model = net(
        lambda m, x: m.b(m.a(x)[x[..., 0] > -9.0].view(x.shape[0], -1, 6)),
        a=nn.Linear(8, 6),
        b=nn.Linear(6, 4),
    )

    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert ("b.weight", 1, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


def test_indices_computed_from_data_pin_the_axis():
    """y[:, argsort(x)] picks features by data: they stay."""
    model = between_features(lambda y: y[:, y.detach().mean(0).argsort()])

    assert analyze(model, (noise(2, 8),), dynamic_batch=False).groups == ()


ORDER = torch.tensor([3, 1, 0, 2, 4])
TWICE = torch.tensor([0, 1, 1, 0, 2])


def tokens(y):
    """ORDER for every channel of features (B, 5, 6)."""
    return ORDER.view(1, -1, 1).expand(y.shape[0], -1, 6)


def written(y, where, value):
    """y[where] = value, on a copy."""
    z = y.clone()
    z[where] = value
    return z


# Each takes features y (B, 5, 6), input x (B, 5, 8) and a parameter s (6,).
BY_NUMBER = {
    "gather": lambda y, x, s: y.gather(1, tokens(y)),
    "gather of the first": lambda y, x, s: y.gather(1, tokens(y)[:, :2]),
    "gather by data": lambda y, x, s: y.gather(
        1, x[:, :, 0].topk(3, 1)[1].unsqueeze(2).expand(-1, -1, 6)
    ),
    "take_along_dim": lambda y, x, s: y.take_along_dim(x[:, :, :1].argsort(1), 1),
    "index by data": lambda y, x, s: y[torch.arange(y.shape[0]), x[:, :, 0].argmax(1)].unsqueeze(1),
    "scatter": lambda y, x, s: torch.zeros_like(y).scatter(1, tokens(y), y),
    "scatter of a number": lambda y, x, s: y.scatter(1, tokens(y)[:, :2], 0.5),
    "scatter_add": lambda y, x, s: torch.zeros_like(y).scatter_add(1, tokens(y), y) + y,
    "scatter_reduce": lambda y, x, s: y.scatter_reduce(1, tokens(y), y.tanh(), "mean"),
    "index_add": lambda y, x, s: torch.zeros(y.shape[0], 3, 6).index_add_(1, TWICE, y),
    "index_copy": lambda y, x, s: torch.zeros_like(y).index_copy(1, ORDER, y.tanh()) + y,
    "diff": lambda y, x, s: y.diff(dim=1, prepend=s.expand(y.shape[0], 1, 6)),
    "masks laid together": lambda y, x, s: y.masked_fill((y > 0) & (x[..., :1] > 0), 0.5),
    "masks by operator": lambda y, x, s: (
        y * torch.ops.aten.__and__(y > 0, torch.ops.aten.__or__(x[..., :1] > 0, s > 0))
    ),
    "index_fill": lambda y, x, s: y.index_fill(1, TWICE, 0.25),
    "a parameter for some tokens": lambda y, x, s: written(y, (slice(None), [0, 2]), s),
    "one token of each": lambda y, x, s: written(
        y, (torch.arange(y.shape[0]), x[:, :, 0].argmax(1)), s
    ),
    "masked tokens": lambda y, x, s: written(y, x[..., 0] > 0, s),
    "masked tokens set to a number": lambda y, x, s: written(y, x[..., 0] > 0, 0.0),
    "masked_scatter": lambda y, x, s: y.masked_scatter(
        (x[..., :1] > 0).expand(-1, -1, 6), y.tanh().flatten(0, 1)
    ),
}


@pytest.mark.parametrize("name", BY_NUMBER)
def test_channels_survive_what_tokens_are_indexed_by(name):
    """Reading and writing numbered tokens leaves the channels alone, whatever the operator."""
    move = BY_NUMBER[name]
    model = net(
        lambda m, x: m.b(move(m.a(x), x, m.s)), a=nn.Linear(8, 6), b=nn.Linear(6, 4), s=param(6)
    )
    pruned = pruned_like_silenced(model, noise(3, 5, 8))

    assert pruned.analysis.unknown == ()
    assert pruned.model.a.weight.shape[0] == 3


@pytest.mark.parametrize(
    "move",
    [
        lambda y, x: y.gather(2, x[..., :6].argsort(2)),
        lambda y, x: y.masked_scatter(x[..., :6] > 0, y.flatten(0, 1)),
        lambda y, x: written(y, x[..., :6] > 0, 0.5),
        lambda y, x: y.scatter(2, x[..., :6].argsort(2), y),
        lambda y, x: y.tril(),
        lambda y, x: y.diff(dim=2, prepend=x[..., :1]),
    ],
)
def test_channels_that_are_indexed_stay(move):
    """Places along the channels chosen by data, or numbers laid one after the other."""
    model = net(lambda m, x: m.b(move(m.a(x), x)), a=nn.Linear(8, 6), b=nn.Linear(6, 4))

    assert analyze(model, (noise(3, 5, 8),)).groups == ()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_rows(mode):
    """nn.EmbeddingBag: rows stay, columns are the width."""
    model = net(lambda m, i: m.b(m.e(i)), e=nn.EmbeddingBag(11, 8, mode=mode), b=nn.Linear(8, 4))
    pruned = pruned_like_silenced(model, IDS)

    assert ("e.weight", 1, (3,)) in pruned.analysis.unit_of("b.weight", 1, 3).slots


def test_classes_written_as_ones():
    """one_hot(i) W: the classes stay, the columns of W are a width."""
    model = net(
        lambda m, i: m.b(m.a(F.one_hot(i, 11).float()).tanh()),
        a=nn.Linear(11, 6),
        b=nn.Linear(6, 4),
    )

    assert pruned_like_silenced(model, IDS).model.a.weight.shape == (3, 11)


def test_functional_use_of_a_tied_table():
    """F.linear(h, e.weight) as the head: the same as a tied layer."""
    model = net(
        lambda m, i: F.linear(torch.tanh(m.l(m.e(i))), m.e.weight),
        e=nn.Embedding(11, 8),
        l=nn.Linear(8, 8),
    )
    analysis = analyze(model, (IDS,))

    assert {("e.weight", 1, (3,)), ("l.weight", 0, (3,)), ("l.weight", 1, (3,))} <= set(
        analysis.unit_of("e.weight", 1, 3).slots
    )
