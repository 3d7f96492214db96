"""Where heads cannot go the positions inside them can, and the other way round; always a box."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import net, noise, param, pruned_like_silenced, require_equal
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune

HEADS, HEAD_DIM, WIDTH = 4, 4, 16
SLOPES = 2.0 ** -torch.arange(1.0, 5.0)


def heads(y, count=HEADS):
    """(B, S, heads * dim) -> (B, heads, S, dim)."""
    return y.unflatten(-1, (count, -1)).transpose(1, 2)


def layers(keys=WIDTH):
    """Projections of 8 features to 4 heads of 4, keys and values maybe narrower."""
    return {
        "q": nn.Linear(8, WIDTH),
        "k": nn.Linear(8, keys),
        "v": nn.Linear(8, keys),
        "o": nn.Linear(WIDTH, 4),
    }


def columns(pruned, parameter):
    """Kept positions inside the first head; every head must keep the same ones."""
    axis = next(a for a in pruned.plan.axes if (a.parameter, a.dim) == (parameter, 0))
    kept = [p for p in axis.keep if p < HEAD_DIM]
    assert list(axis.keep) == [h * HEAD_DIM + p for h in range(axis.size // HEAD_DIM) for p in kept]
    return kept


# Each takes scores (B, 4, S, S) and gives weights of which no single head can go.
FIXED_HEADS = {
    "softmax over heads": lambda s, z: s.softmax(1),
    "a mask for each head as input": lambda s, z: (s + z).softmax(-1),
}


@pytest.mark.parametrize("name", FIXED_HEADS)
def test_heads_that_cannot_go_lose_positions(name):
    """Queries and keys lose the same columns of every head, values others; the scale stays."""
    weigh = FIXED_HEADS[name]

    def run(m, x, z):
        scores = heads(m.q(x)) @ heads(m.k(x)).transpose(-2, -1) * 0.5
        return m.o((weigh(scores, z) @ heads(m.v(x))).transpose(1, 2).flatten(2))

    model, x, z = net(run, **layers()), noise(2, 5, 8), noise(2, 4, 5, 5, seed=3)
    pruned = prune(model, (x, z), criterion="random", dynamic_batch=False)

    assert pruned.proof.outcome == "proved"
    inner, outer = columns(pruned, "q.weight"), columns(pruned, "v.weight")
    assert inner == columns(pruned, "k.weight")
    assert len(inner) == len(outer) == 2
    q, k, v = (heads(layer(x)) for layer in (model.q, model.k, model.v))
    scores = q[..., inner] @ k[..., inner].transpose(-2, -1) * 0.5
    mask = torch.zeros(HEAD_DIM).index_fill(0, torch.tensor(outer), 1.0)
    heard = weigh(scores, z) @ (v * mask)
    require_equal(pruned.model(x, z), model.o(heard.transpose(1, 2).flatten(2)))


def test_slopes_counted_in_forward_go_with_their_heads():
    """ALiBi from arange: the head that stays keeps the slope that was its own."""

    def run(m, x, kept=slice(None)):
        slopes = (2.0 ** -torch.arange(1.0, 5.0)).view(-1, 1, 1)
        scores = heads(m.q(x)) @ heads(m.k(x)).transpose(-2, -1) * 0.5
        weights = (scores + slopes * torch.arange(5.0)).softmax(-1)
        heard = torch.zeros(4, 1, 1)
        heard[kept] = 1.0
        return m.o((weights @ heads(m.v(x)) * heard).transpose(1, 2).flatten(2))

    model, x = net(run, **layers()), noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random")
    group = next(g for g in pruned.plan.groups if g.kind == "head")

    assert pruned.proof.outcome == "proved"
    assert len(group.keep) == 2
    require_equal(pruned.model(x), model(x, list(group.keep)))


def test_a_table_counted_in_forward_leaves_the_heads():
    """Rotary embedding from arange is fixed along the head dim and the same for every head."""

    def run(m, x):
        angle = torch.arange(5.0).unsqueeze(1) * torch.arange(1.0, 5.0)
        q, k = (heads(m.q(x)) * angle.cos(), heads(m.k(x)) * angle.sin())
        y = F.scaled_dot_product_attention(q, k, heads(m.v(x)))
        return m.o(y.transpose(1, 2).flatten(2))

    pruned = pruned_like_silenced(net(run, **layers()), noise(2, 5, 8))

    assert ("k.weight", 0, (4, 5, 6, 7)) in pruned.analysis.unit_of("q.weight", 0, 5).slots


@pytest.mark.parametrize("copied", [True, False])
def test_one_key_for_all_queries_loses_columns(copied):
    """The key broadcast or expanded: column 1 of every query head goes with the key's."""

    def run(m, x):
        k, v = (layer(x).unsqueeze(1) for layer in (m.k, m.v))
        if copied:
            k, v = (t.expand(-1, HEADS, -1, -1) for t in (k, v))
        y = (heads(m.q(x)) @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return m.o(y.transpose(1, 2).flatten(2))

    model, x = net(run, **layers(HEAD_DIM)), noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    inner, outer = columns(pruned, "q.weight"), columns(pruned, "v.weight")
    assert inner == columns(pruned, "k.weight")
    k, v = model.k(x).unsqueeze(1), model.v(x).unsqueeze(1)
    scores = heads(model.q(x))[..., inner] @ k[..., inner].transpose(-2, -1) * 0.5
    mask = torch.zeros(HEAD_DIM).index_fill(0, torch.tensor(outer), 1.0)
    heard = scores.softmax(-1) @ (v * mask)
    require_equal(pruned.model(x), model.o(heard.transpose(1, 2).flatten(2)))


def test_one_key_with_a_fixed_table_loses_queries():
    """Where the columns of the one key are fixed, whole query heads go and the key stays."""

    def run(m, x):
        angle = torch.arange(5.0).unsqueeze(1) * torch.arange(1.0, 5.0)
        q, k = heads(m.q(x)) * angle.cos(), m.k(x).unsqueeze(1) * angle.sin()
        y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ m.v(x).unsqueeze(1)
        return m.o(y.transpose(1, 2).flatten(2))

    pruned = pruned_like_silenced(net(run, **layers(HEAD_DIM)), noise(2, 5, 8))

    slots = pruned.analysis.unit_of("q.weight", 0, 5).slots
    assert ("q.weight", 0, (4, 5, 6, 7)) in slots
    assert ("o.weight", 1, (4, 5, 6, 7)) in slots
    assert pruned.model.k.weight.shape == (HEAD_DIM, 8)


def test_labels_along_one_axis_do_not_cover_another():
    """Data (B, 4, 1, 1) times a table (4,): labels along the head dim, none along heads.

    The columns go with the table's, the heads stay. The gap this closes: such an operand was
    taken to follow along both.
    """

    def run(m, x, z):
        y = heads(m.q(x)) + z * m.t
        return m.o(y.tanh().transpose(1, 2).flatten(2))

    model = net(run, q=nn.Linear(8, WIDTH), o=nn.Linear(WIDTH, 4), t=param(HEAD_DIM))
    pruned = pruned_like_silenced(model, noise(2, 5, 8), noise(2, 4, 1, 1))

    slots = pruned.analysis.unit_of("t", 0, 1).slots
    assert ("q.weight", 0, (1, 5, 9, 13)) in slots


def test_shifts_and_scales_added_to_one_table_lose_width():
    """Six vectors a block from one layer, plus a table of six: their width is the residual's."""

    def run(m, x, t):
        made = m.made(t).reshape(t.shape[0], 6, -1) + m.table[None]
        shift, scale, gate, shift2, scale2, gate2 = made.chunk(6, dim=1)
        y = m.a(x)
        y = y + gate * m.one(m.norm(y) * (1 + scale) + shift).relu()
        y = y + gate2 * m.two(m.norm(y) * (1 + scale2) + shift2).relu()
        return m.b(y)

    width = 8
    model = net(
        run,
        made=nn.Linear(4, 6 * width),
        table=nn.Parameter(torch.randn(6, width)),
        a=nn.Linear(3, width),
        norm=nn.LayerNorm(width, elementwise_affine=False),
        one=nn.Linear(width, width),
        two=nn.Linear(width, width),
        b=nn.Linear(width, 5),
    )

    pruned = prune(model, (noise(2, 7, 3), noise(2, 4)))

    unit = pruned.analysis.unit_of("a.weight", 0, 2)
    assert ("made.weight", 0, tuple(range(2, 6 * width, width))) in unit.slots
    assert ("table", 1, (2,)) in unit.slots
    assert pruned.proof.outcome == "proved"


def test_columns_go_where_the_rows_they_cross_cannot():
    """A flattened outer product (5, 8): the 5 under a softmax stay, so features of 8 may go."""
    model = net(
        lambda m, x: m.b((m.k(m.a(x)).softmax(1)[:, :, None] * m.a(x)[:, None]).flatten(1)),
        a=nn.Linear(6, 8),
        k=nn.Linear(8, 5),
        b=nn.Linear(40, 3),
    )
    pruned = pruned_like_silenced(model, noise(3, 6))

    assert pruned.model.a.weight.shape == (4, 6)
    assert pruned.model.b.weight.shape == (3, 20)


def test_padding_of_heads_that_are_merged_with_samples():
    """Keys shifted by one behind (samples * heads): the slice that takes all stays a whole one."""

    def back(y):
        return F.pad(y, (0, 0, 1, 0))[:, :-1]

    def attend(m, x):
        q, k, v = (heads(layer(x)).flatten(0, 1) for layer in (m.q, m.k, m.v))
        y = (q @ back(k).mT).softmax(-1) @ back(v)
        return m.o(y.reshape(x.shape[0], HEADS, -1, HEAD_DIM).transpose(1, 2).flatten(2))

    model = net(attend, **layers())
    pruned = prune(model, (noise(2, 5, 8),), criterion="random")

    assert pruned.proof.outcome == "proved"
    assert pruned.model(noise(3, 5, 8)).shape[0] == 3


def test_a_width_that_is_repeated_says_why_it_stays():
    """An axis in several tensors is a group or has a pin: it never drops out of the account."""

    def residuals(m, x):
        y = m.a(x).relu()
        spread = y.expand(5, -1, -1).transpose(0, 1) - m.centres
        return m.b(torch.cat([(spread * m.k(y).softmax(1)[..., None]).flatten(1), y], 1))

    model = net(
        residuals,
        a=nn.Linear(6, 8),
        k=nn.Linear(8, 5),
        centres=param(5, 8),
        b=nn.Linear(48, 3),
    )
    analysis = analyze(model, (noise(3, 6),))

    grouped = {(t.parameter, t.dim) for group in analysis.groups for t in group.tables}
    pinned = {(pin.parameter, pin.dim) for pin in analysis.pins}
    assert ("a.weight", 0) in grouped | pinned
