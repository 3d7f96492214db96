"""einsum: what is a contraction of two tensors shrinks, anything else is pinned."""

from __future__ import annotations

import pytest
import torch
from small_nets import net, noise, param, pruned_like_silenced, require_equal
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.graph.contraction import Equation
from edgeprune.graph.rules.summation import pair_of
from edgeprune.planning.cost import cost
from edgeprune.surgery.prune import prune


def keeps(pruned, parameter, dim):
    """Kept positions of one dim, as the plan has them."""
    return list(next(a.keep for a in pruned.plan.axes if (a.parameter, a.dim) == (parameter, dim)))


@pytest.mark.parametrize(
    ("first", "second"), [("bnk,kh->bnh", "bnh,ho->bno"), (" bnk , hk -> hbn ", "hbn,oh->bno")]
)
def test_a_layer_written_as_einsum_is_a_layer(first, second):
    """tanh(x W) U by einsum, in either order of letters: by hand, with the kept hidden units."""
    shapes = {"h": 6, "k": 8, "o": 4}
    w, u = (
        param(*(shapes[c] for c in e.partition("->")[0].split(",")[1].strip()))
        for e in (first, second)
    )
    model = net(
        lambda m, x: torch.einsum(second, torch.einsum(first, x, m.w).tanh(), m.u), w=w, u=u
    )
    x = noise(3, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    assert pruned.proof.outcome == "proved"
    dims = [e.partition("->")[0].split(",")[1].strip().index("h") for e in (first, second)]
    kept = keeps(pruned, "w", dims[0])
    assert kept == keeps(pruned, "u", dims[1])
    small_w, small_u = (
        p.index_select(d, torch.tensor(kept)) for p, d in zip((model.w, model.u), dims, strict=True)
    )
    want = torch.einsum(second, torch.einsum(first, x, small_w).tanh(), small_u)
    require_equal(pruned.model(x), want)
    assert cost(analyze(model, (x,)).captured).macs == 5 * (8 * 6 + 6 * 4)


def attention(m, x):
    """Two heads of 4, scores and values by einsum."""
    q, k, v = (layer(x).unflatten(2, (2, 4)) for layer in (m.q, m.k, m.v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * 0.5
    return m.out(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2))


def test_attention_written_as_einsum_has_heads():
    """Whole heads go, as with matmul, and the rest computes what the eager model does."""
    model = net(attention, **{name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")})
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert [(group.kind, group.width) for group in pruned.analysis.groups] == [("head", 2)]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(torch.einsum("bnh,bnh,bnh->bnh", m.a(x), m.a(x), x)),
        lambda m, x: m.b(torch.einsum("...h,h->...h", m.a(x), torch.arange(1.0, 9.0))),
        lambda m, x: torch.einsum("bnh,op->bno", m.a(x), m.b.weight),
        lambda m, x: torch.einsum("bnh,bnh->bn", m.a(x), m.b.weight[:1, :1].reshape(1, 1, 1)),
    ],
)
def test_other_equations_pin_what_they_read(run):
    """Three operands, dots, a letter summed alone, a broadcast size: `a` is pinned, with reason."""
    analysis = analyze(net(run, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), (noise(2, 5, 8),))
    (pin,) = [p for p in analysis.pins if p.parameter == "a.weight" and p.dim == 0]

    assert "is not a contraction of two tensors" in pin.reason
    assert analysis.unknown == ()


def test_the_letters_of_a_result_that_is_not_written():
    """Without an arrow: letters that occur once, in alphabetical order."""
    assert pair_of("bj,ij") == Equation("bj", "ij", "bi")
    assert pair_of("ij->ji") is None
    assert pair_of("bii,bi->b") is None
