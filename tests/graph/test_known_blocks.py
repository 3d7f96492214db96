"""Blocks of well-known networks, each with the structure that makes it hard."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import conv, image, net, noise, param, pruned_like_silenced
from torch import nn

from edgeprune.surgery.prune import prune


def unet(m, x):
    """An encoder, a transposed convolution back up and a skip."""
    y = m.a(x).relu()
    return m.c(torch.cat([y, m.u(torch.tanh(m.b(F.max_pool2d(y, 2))))], 1))


def c2f(m, x):
    """YOLO: a split, a chain of branches, all parts concatenated."""
    parts = list(m.a(x).chunk(2, 1))
    parts.append(m.b(parts[-1]))
    parts.append(m.c(parts[-1]))
    return m.d(torch.cat(parts, 1))


def convnext(m, x):
    """Depthwise 7x7, layer norm over channels last, inverted bottleneck, layer scale."""
    y = m.a(x)
    z = m.n(m.d(y).permute(0, 2, 3, 1))
    return m.h(y + (m.g * m.w(F.gelu(m.u(z)))).permute(0, 3, 1, 2))


def split_attention(m, x):
    """ResNeSt: two cardinal groups weighed by a softmax over them."""
    y = m.a(x).view(-1, 2, 8, 6, 6)
    gate = m.e(torch.tanh(m.f(y.sum(1).mean((2, 3))))).view(-1, 2, 8).softmax(1)
    return m.b((y * gate[..., None, None]).sum(1))


def recurrent(m, x):
    """A hand-written recurrence over five steps, all of its states read."""
    state, states = x.new_zeros(x.shape[0], 6), []
    for step in range(5):
        state = torch.tanh(m.w(x[:, step]) + m.u(state))
        states.append(state)
    return m.o(torch.stack(states, 1))


def highway(m, x):
    """g h(y) + (1 - g) y."""
    y = m.a(x)
    gate = m.t(y).sigmoid()
    return m.b(gate * m.h(y) + (1 - gate) * y)


def crelu(m, x):
    """cat([y, -y]).relu(): every feature is heard twice."""
    y = m.a(x)
    return m.b(torch.cat([y, -y], 1).relu())


def patch_merging(m, x):
    """Swin: four neighbours side by side, a layer norm over all of them, a reduction."""
    y = m.p(x)
    corners = [y[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return m.h(m.r(m.n(torch.cat(corners, -1))))


BLOCKS = {
    "unet": (
        unet,
        {"a": conv(3, 8), "b": conv(8, 12), "u": nn.ConvTranspose2d(12, 8, 2, 2), "c": conv(16, 4)},
        image(),
    ),
    "c2f": (c2f, {"a": conv(3, 8), "b": conv(4, 4), "c": conv(4, 4), "d": conv(16, 4)}, image()),
    "convnext": (
        convnext,
        {
            "a": conv(3, 8),
            "d": conv(8, 8, 7, groups=8),
            "n": nn.LayerNorm(8),
            "u": nn.Linear(8, 16),
            "w": nn.Linear(16, 8),
            "g": param(8),
            "h": conv(8, 4),
        },
        image(),
    ),
    "split attention": (
        split_attention,
        {"a": conv(3, 16), "f": nn.Linear(8, 6), "e": nn.Linear(6, 16), "b": conv(8, 4)},
        image(),
    ),
    "recurrent": (
        recurrent,
        {"w": nn.Linear(8, 6), "u": nn.Linear(6, 6), "o": nn.Linear(6, 4)},
        noise(2, 5, 8),
    ),
    "highway": (
        highway,
        {"a": nn.Linear(8, 6), "t": nn.Linear(6, 6), "h": nn.Linear(6, 6), "b": nn.Linear(6, 4)},
        noise(2, 8),
    ),
    "crelu": (crelu, {"a": nn.Linear(8, 6), "b": nn.Linear(12, 4)}, noise(2, 8)),
    "patch merging": (
        patch_merging,
        {
            "p": nn.Linear(8, 6),
            "n": nn.LayerNorm(24),
            "r": nn.Linear(24, 10, bias=False),
            "h": nn.Linear(10, 3),
        },
        noise(2, 4, 4, 8),
    ),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_shrink_like_the_silenced_eager_block(block):
    """Half of every width goes, and the rest computes what the eager block computes."""
    run, layers, x = BLOCKS[block]
    model = net(run, **layers)
    pruned = pruned_like_silenced(model, x)

    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, pruned.model)]
    assert sizes[1] < 0.65 * sizes[0]


def test_shifted_window_attention():
    """Swin: rolled, cut into windows that join the batch, a bias a head, and all the way back."""

    def run(m, x):
        y = m.p(x)
        batch = y.shape[0]
        z = torch.roll(m.n(y), (-1, -1), (1, 2)).view(batch, 2, 2, 2, 2, 8)
        z = z.permute(0, 1, 3, 2, 4, 5).reshape(batch * 4, 4, 8)
        q, k, v = m.q(z).reshape(batch * 4, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        z = (q * 0.5 @ k.transpose(-2, -1) + m.t).softmax(-1) @ v
        z = m.o(z.transpose(1, 2).reshape(batch * 4, 4, 8)).view(batch, 2, 2, 2, 2, 8)
        z = z.permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, 8)
        return m.h(y + torch.roll(z, (1, 1), (1, 2)))

    model = net(
        run,
        p=nn.Linear(6, 8),
        n=nn.LayerNorm(8),
        q=nn.Linear(8, 24),
        o=nn.Linear(8, 8),
        t=param(2, 4, 4),
        h=nn.Linear(8, 3),
    )
    pruned = pruned_like_silenced(model, noise(2, 4, 4, 6))

    # The width and two heads; the head that stays keeps its bias.
    assert sorted(group.width for group in pruned.analysis.groups) == [2, 8]
    assert pruned.model.t.shape == (1, 4, 4)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_positions_let_heads_go(interleaved):
    """Rotary tables over the head dim are every head's: whole heads go, the tables stay."""

    def rotate(y):
        if interleaved:
            return torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2)
        return torch.cat([-y[..., 2:], y[..., :2]], -1)

    def run(m, x):
        q, k, v = (layer(x).view(-1, 5, 4, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        q, k = (y * m.c + rotate(y) * m.s for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v)
        return m.o(y.transpose(1, 2).reshape(-1, 5, 16))

    layers = {name: nn.Linear(8, 16) for name in "qkv"}
    model = net(run, **layers, o=nn.Linear(16, 4), c=noise(5, 4), s=noise(5, 4, seed=6))
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert [group.width for group in pruned.analysis.groups] == [4]
    assert pruned.model.c.shape == (5, 4)


def test_normalised_queries_and_keys_let_heads_go():
    """A layer norm over the head dim, its weights shared by all heads."""

    def run(m, x):
        q, k, v = (layer(x).view(-1, 5, 2, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(m.n(q), m.n(k), v)
        return m.o(y.transpose(1, 2).reshape(-1, 5, 8))

    layers = {name: nn.Linear(8, 8) for name in "qkv"}
    model = net(run, **layers, n=nn.LayerNorm(4), o=nn.Linear(8, 4))
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert pruned.model.q.weight.shape == (4, 8)
    assert pruned.model.n.weight.shape == (4,)


@pytest.mark.parametrize("spread", ["expand", "repeat_interleave"])
def test_grouped_query_attention(spread):
    """Two key heads for four query heads, spread by expand-reshape as Llama does, or repeated."""

    def run(m, x):
        q = m.q(x).view(-1, 5, 4, 4).transpose(1, 2)
        k, v = (layer(x).view(-1, 5, 2, 4).transpose(1, 2) for layer in (m.k, m.v))
        if spread == "expand":
            k, v = (y[:, :, None].expand(-1, 2, 2, 5, 4).reshape(-1, 4, 5, 4) for y in (k, v))
        else:
            k, v = (y.repeat_interleave(2, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return m.o(y.transpose(1, 2).reshape(-1, 5, 16))

    model = net(run, q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), o=nn.Linear(16, 4))
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert pruned.model.o.weight.shape[1] == 8


def test_cosine_similarity_to_prototypes():
    """Both sides normalised: the norm is of what is kept, the folded prototypes keep theirs."""
    model = net(
        lambda m, x: F.linear(F.normalize(m.a(x)), F.normalize(m.p)) * 16,
        a=nn.Linear(8, 6),
        p=param(4, 6),
    )

    assert prune(model, (noise(2, 8),)).proof.outcome == "proved"
