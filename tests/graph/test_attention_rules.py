"""Attention: whole heads are the units and the dense scale stays; the oracle is by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import net, noise, param, pruned_like_silenced, require_equal
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune

HEADS, HEAD_DIM, WIDTH = 4, 4, 16


def heads(y: torch.Tensor, count: int = HEADS) -> torch.Tensor:
    """(B, S, heads * dim) -> (B, heads, S, dim)."""
    return y.unflatten(-1, (count, -1)).transpose(1, 2)


def by_hand(q, k, v, kept, scale, bias=None):
    """Softmax attention of the kept heads only; the others are zero: (B, S, heads * dim)."""
    parts = []
    for head in range(HEADS):
        scores = q[:, head] @ k[:, head].transpose(1, 2) * scale
        if bias is not None:
            scores = scores + bias[head]
        heard = scores.softmax(-1) @ v[:, head]
        parts.append(heard if head in kept else torch.zeros_like(heard))
    return torch.cat(parts, -1)


def head_group(pruned, parameter):
    """The heads that stay, and their number of units."""
    for group in pruned.analysis.groups:
        if any(t.parameter == parameter and t.dim == 0 for t in group.tables):
            kept = next(g.keep for g in pruned.plan.groups if g.name == group.name)
            return set(kept), group.width
    raise AssertionError(parameter)


def test_multi_head_attention_module():
    """nn.MultiheadAttention loses whole heads, as if they said nothing to the output layer."""
    model = net(
        lambda m, x: m.b(m.a(x, x, x, need_weights=False)[0]),
        a=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        b=nn.Linear(WIDTH, 4),
    )
    x = noise(3, 5, WIDTH)
    pruned = prune(model, (x,), criterion="random", only=("a.in_proj_weight",))

    kept, width = head_group(pruned, "a.in_proj_weight")
    qkv = F.linear(x, model.a.in_proj_weight, model.a.in_proj_bias).chunk(3, -1)
    heard = by_hand(*map(heads, qkv), kept, HEAD_DIM**-0.5)
    assert width == HEADS
    require_equal(pruned.model(x), model.b(model.a.out_proj(heard)))


def test_a_head_takes_its_rows_of_query_key_and_value():
    """Head 1 of 4 x 4: rows 4-7 of each third of the fused projection, columns 4-7 of the next."""
    model = net(
        lambda m, x: m.a(x, x, x, need_weights=False)[0],
        a=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
    )
    slots = analyze(model, (noise(2, 5, WIDTH),)).unit_of("a.in_proj_weight", 0, 5).slots

    rows = (*range(4, 8), *range(20, 24), *range(36, 40))
    assert ("a.in_proj_weight", 0, rows) in slots
    assert ("a.out_proj.weight", 1, (4, 5, 6, 7)) in slots


def test_the_width_of_an_encoder_block_goes_too():
    """A block between projections: its width, its heads and its hidden width are three groups."""

    def run(m, x):
        y = m.p(x)
        y = y + m.a(m.n(y), m.n(y), m.n(y), need_weights=False)[0]
        return m.h(y + m.d(F.gelu(m.c(m.k(y)))))

    model = net(
        run,
        p=nn.Linear(8, WIDTH),
        n=nn.LayerNorm(WIDTH),
        a=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        k=nn.LayerNorm(WIDTH),
        c=nn.Linear(WIDTH, 24),
        d=nn.Linear(24, WIDTH),
        h=nn.Linear(WIDTH, 3),
    )
    pruned = prune(model, (noise(2, 5, 8),), criterion="random")

    assert pruned.proof.outcome == "proved"
    assert [g.width for g in pruned.analysis.groups] == [WIDTH, HEADS, 24]
    assert pruned.model.p.weight.shape[0] == WIDTH // 2


@pytest.mark.parametrize("fused", [True, False])
def test_fused_and_separate_projections(fused):
    """qkv in one layer, split by reshape-permute-unbind, or three layers: the same four heads."""

    def run(m, x):
        batch, count, _ = x.shape
        if fused:
            parts = m.qkv(x).reshape(batch, count, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0)
        else:
            q, k, v = (heads(layer(x)) for layer in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return m.o(y.transpose(1, 2).reshape(batch, count, WIDTH))

    layers = {"qkv": nn.Linear(8, 3 * WIDTH)} if fused else {c: nn.Linear(8, WIDTH) for c in "qkv"}
    model = net(run, **layers, o=nn.Linear(WIDTH, 4))
    x = noise(2, 5, 8)
    pruned = pruned_like_silenced(model, x)

    kept, width = head_group(pruned, "qkv.weight" if fused else "q.weight")
    projected = model.qkv(x).chunk(3, -1) if fused else (model.q(x), model.k(x), model.v(x))
    assert width == HEADS
    heard = by_hand(*map(heads, projected), kept, HEAD_DIM**-0.5)
    require_equal(pruned.model(x), model.o(heard))


def test_explicit_attention_with_a_bias_for_every_head():
    """softmax(q k^T s + bias) v with the scale as a number; bias[h] goes with head h."""

    def run(m, x):
        q, k, v = m.q(x).reshape(-1, 5, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * 0.4 + m.bias
        return m.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 5, WIDTH))

    model = net(run, q=nn.Linear(8, 48), o=nn.Linear(WIDTH, 4), bias=param(HEADS, 5, 5))
    x = noise(2, 5, 8)
    pruned = pruned_like_silenced(model, x)

    kept, _ = head_group(pruned, "q.weight")
    heard = by_hand(*map(heads, model.q(x).chunk(3, -1)), kept, 0.4, model.bias)
    require_equal(pruned.model(x), model.o(heard))
    assert pruned.model.bias.shape == (2, 5, 5)


def test_a_mask_without_heads_stays():
    """A mask (S, S) in scaled_dot_product_attention is no width of anything."""

    def run(m, x, mask):
        y = F.scaled_dot_product_attention(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)), mask)
        return m.o(y.transpose(1, 2).flatten(2))

    model = net(run, **{c: nn.Linear(8, WIDTH) for c in "qkv"}, o=nn.Linear(WIDTH, 4))
    pruned = prune(model, (noise(2, 5, 8), noise(5, 5)), criterion="random")

    assert head_group(pruned, "q.weight")[1] == HEADS
    assert pruned.proof.outcome == "proved"


@pytest.mark.parametrize("as_head", [True, False])
def test_one_head_loses_positions_and_keeps_the_dense_scale(as_head):
    """Without heads, query and key lose features; the scale is still 8 ** -0.5, not 4 ** -0.5."""

    def run(m, x):
        q, k, v = (t.unsqueeze(1) if as_head else t for t in (m.q(x), m.k(x), m.v(x)))
        y = F.scaled_dot_product_attention(q, k, v)
        return m.o(y.squeeze(1) if as_head else y)

    model = net(run, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 12), o=nn.Linear(12, 4))
    x = noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    axes = {a.parameter: list(a.keep) for a in pruned.plan.axes if a.dim == 0}
    q, k, v = model.q(x), model.k(x), model.v(x)
    mask = torch.zeros(12).index_fill(0, torch.tensor(axes["v.weight"]), 1.0)
    kept = axes["q.weight"]
    scores = q[..., kept] @ k[..., kept].transpose(1, 2) * 8**-0.5
    require_equal(pruned.model(x), model.o(scores.softmax(-1) @ v * mask))


def test_cross_attention_over_another_length():
    """Queries of 5 tokens, keys of 7: heads of all four projections go together."""

    def run(m, x, z):
        y = F.scaled_dot_product_attention(heads(m.q(x)), heads(m.k(z)), heads(m.v(z)))
        return m.o(y.transpose(1, 2).flatten(2))

    model = net(
        run,
        q=nn.Linear(8, WIDTH),
        k=nn.Linear(6, WIDTH),
        v=nn.Linear(6, WIDTH),
        o=nn.Linear(WIDTH, 4),
    )
    pruned = pruned_like_silenced(model, noise(2, 5, 8), noise(2, 7, 6))

    assert ("k.weight", 0, (4, 5, 6, 7)) in pruned.analysis.unit_of("q.weight", 0, 6).slots


def test_shared_keys_go_with_their_queries():
    """Two key heads for four query heads, repeated: a unit is a key head with its two queries."""

    def run(m, x):
        k, v = (heads(layer(x), 2).repeat_interleave(2, 1) for layer in (m.k, m.v))
        y = F.scaled_dot_product_attention(heads(m.q(x)), k, v)
        return m.o(y.transpose(1, 2).flatten(2))

    model = net(
        run, q=nn.Linear(8, WIDTH), k=nn.Linear(8, 8), v=nn.Linear(8, 8), o=nn.Linear(WIDTH, 4)
    )
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    slots = pruned.analysis.unit_of("k.weight", 0, 5).slots
    assert ("k.weight", 0, (4, 5, 6, 7)) in slots
    assert ("q.weight", 0, tuple(range(8, 16))) in slots


def test_attention_over_channels_ties_the_softmax_side():
    """softmax over a removable axis needs all of it: keys' channels stay, queries' go with none."""

    def run(m, x):
        q, k, v = (layer(x).flatten(2) for layer in (m.q, m.k, m.v))
        return m.o(((q @ k.transpose(1, 2)).softmax(-1) @ v).view(-1, 6, 6, 6))

    layers = {c: nn.Conv2d(3, 6, 1) for c in "qkv"}
    model = net(run, **layers, o=nn.Conv2d(6, 4, 1))
    pruned = pruned_like_silenced(model, noise(2, 3, 6, 6))

    assert [group.name for group in pruned.analysis.groups] == ["q.weight"]


def test_linear_attention_without_softmax():
    """q (k^T v): two contractions, the inner width and the value width apart."""

    def run(m, x):
        return m.o(m.q(x).relu() @ (m.k(x).relu().transpose(1, 2) @ m.v(x)))

    model = net(run, **{c: nn.Linear(8, 6) for c in "qkv"}, o=nn.Linear(6, 4))
    x = noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    axes = {a.parameter: list(a.keep) for a in pruned.plan.axes if a.dim == 0}
    q, k, v = (getattr(model, c)(x)[..., axes[f"{c}.weight"]] for c in "qkv")
    expected = q.relu() @ (k.relu().transpose(1, 2) @ v)
    weight = model.o.weight[:, axes["v.weight"]]
    require_equal(pruned.model(x), F.linear(expected, weight, model.o.bias))


GROUPED = {
    "inside the operator": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    "expanded": lambda q, k, v: F.scaled_dot_product_attention(
        q, *(t.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
    ),
    "repeated": lambda q, k, v: F.scaled_dot_product_attention(
        q, *(t.repeat_interleave(2, 1) for t in (k, v))
    ),
}


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_queries(name):
    """Four key heads for eight query heads: a key head goes with its two queries, and again."""
    attend = GROUPED[name]

    def run(m, x):
        y = attend(heads(m.q(x), 8), heads(m.k(x)), heads(m.v(x)))
        return m.o(y.transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(8, 32), "k": nn.Linear(8, WIDTH), "v": nn.Linear(8, WIDTH)}
    model, x = net(run, **layers, o=nn.Linear(32, 4)), noise(2, 5, 8)
    pruned = pruned_like_silenced(model, x)

    slots = pruned.analysis.unit_of("k.weight", 0, 5).slots
    assert ("q.weight", 0, tuple(range(8, 16))) in slots
    again = prune(pruned.model, (x,), criterion="random")
    assert again.proof.outcome == "proved"
    assert again.model.q.weight.shape[0] == 8


@pytest.mark.parametrize("polar", [True, False])
def test_rotation_by_complex_numbers(polar):
    """view_as_complex pairs neighbours inside a head; the table serves all heads."""
    angle = torch.arange(5.0).unsqueeze(1) * torch.arange(1.0, 3.0)

    def turn(y, table):
        z = torch.view_as_complex(y.unflatten(-1, (-1, 2)))
        return torch.view_as_real(z * table).flatten(3)

    def run(m, x):
        table = torch.polar(m.one, m.angle) if polar else torch.view_as_complex(m.pairs)
        q, k = (turn(heads(layer(x)), table) for layer in (m.q, m.k))
        y = F.scaled_dot_product_attention(q, k, heads(m.v(x)))
        return m.o(y.transpose(1, 2).flatten(2))

    tables = {"one": torch.ones(5, 2), "angle": angle, "pairs": noise(5, 2, 2)}
    layers = {c: nn.Linear(8, WIDTH) for c in "qkv"}
    model = net(run, **layers, o=nn.Linear(WIDTH, 4), **tables)
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert ("k.weight", 0, (4, 5, 6, 7)) in pruned.analysis.unit_of("q.weight", 0, 5).slots


def test_an_extra_column_of_ones_goes_with_its_head():
    """Linear attention pads the values with ones to get the denominator: one for each head."""

    def run(m, x):
        q, k = (heads(layer(x)).relu() for layer in (m.q, m.k))
        y = q @ (k.transpose(-2, -1) @ F.pad(heads(m.v(x)), (0, 1), value=1.0))
        return m.o((y[..., :-1] / (y[..., -1:] + 1.0)).transpose(1, 2).flatten(2))

    model = net(run, **{c: nn.Linear(8, WIDTH) for c in "qkv"}, o=nn.Linear(WIDTH, 4))
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert head_group(pruned, "q.weight")[1] == HEADS


@pytest.mark.parametrize("option", ["add_zero_attn", "add_bias_kv"])
def test_extra_keys_of_the_attention_module(option):
    """A key of zeros for batch x heads, or a learnt one, has the heads of the others; twice."""
    model = net(
        lambda m, x: m.b(m.a(x, x, x)[0]),
        a=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **{option: True}),
        b=nn.Linear(WIDTH, 4),
    )
    x = noise(2, 5, WIDTH)
    pruned = prune(model, (x,), criterion="random", only=("a.in_proj_weight",))
    again = prune(pruned.model, (x,), criterion="random", only=("a.in_proj_weight",))

    assert pruned.proof.outcome == again.proof.outcome == "proved"
    assert again.model.a.out_proj.weight.shape == (WIDTH, HEAD_DIM)


def test_a_rotation_of_whole_heads_leaves_an_empty_rest():
    """Partial rotations are written for all: with the whole dim rotated, nothing is passed on."""

    def run(m, x):
        q, k, v = map(heads, m.qkv(x).chunk(3, -1))
        turned, rest = q[..., :HEAD_DIM], q[..., HEAD_DIM:]
        q = torch.cat([turned.roll(1, -1) * m.table, rest], -1)
        mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return m.b(mixed.transpose(1, 2).flatten(2))

    model = net(
        run,
        qkv=nn.Linear(WIDTH, 3 * WIDTH),
        table=torch.randn(HEAD_DIM),
        b=nn.Linear(WIDTH, 4),
    )

    pruned = prune(model, (noise(2, 5, WIDTH),))

    assert head_group(pruned, "qkv.weight")[1] == HEADS
    assert pruned.proof.outcome == "proved"
