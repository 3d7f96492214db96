"""einsum: contractions, sums, diagonals and broadcasts, whatever the number of operands."""

from __future__ import annotations

import pytest
import torch
from small_nets import net, noise, param, pruned_like_silenced, require_equal
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.graph.rules.summation import terms_of
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


def between(equation, *others):
    """Features of `a` (B, 5, 6) into einsum with bare parameters, then `b` on the last dim."""
    names = [f"w{i}" for i in range(len(others))]
    layers = {name: param(*shape) for name, shape in zip(names, others, strict=True)}

    def run(m, x):
        y = torch.einsum(equation, m.a(x).tanh(), *(getattr(m, name) for name in names))
        return m.b(y)

    return run, layers


# Equation, shapes of the other operands, width that `b` reads.
EQUATIONS = [
    ("...h,hk->...k", [(6, 10)], 10),
    ("...h,hk", [(6, 10)], 10),
    ("bn...,k...->bnk", [(10, 6)], 10),
    ("bnh,bnh->bnh", [(1, 1, 6)], 6),
    ("bnh,bnk->bkh", [(1, 1, 10)], 6),
    ("bnh->bh", [], 6),
    ("...h->...h", [], 6),
    ("bnh,hk,ko->bno", [(6, 10), (10, 7)], 7),
    ("bnh,h,h->bnh", [(6,), (6,)], 6),
    ("bnh,ho->bh", [(6, 3)], 6),
    ("bnh,hh->bnh", [(6, 6)], 6),
    ("bnh,ehk,e->bnk", [(3, 6, 10), (3,)], 10),
]


@pytest.mark.parametrize(("equation", "others", "width"), EQUATIONS)
def test_every_equation_shrinks(equation, others, width):
    """Dots, sizes of 1, letters of one operand alone, three operands, a diagonal.

    By hand: the same equation over the kept positions of every operand.
    """
    run, layers = between(equation, *others)
    model = net(run, a=nn.Linear(8, 6), b=nn.Linear(width, 4), **layers)
    x = noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    assert pruned.proof.outcome == "proved"
    assert pruned.model.a.weight.shape[0] == 3
    small = dict(model.named_parameters())
    for axis in pruned.plan.axes:
        kept = torch.tensor(axis.keep)
        small[axis.parameter] = small[axis.parameter].index_select(axis.dim, kept)
    want = torch.func.functional_call(model, small, (x,))
    require_equal(pruned.model(x), want)


def test_a_width_summed_away_is_heard_by_the_sum():
    """ "bnh->bn" and "bii->b": nothing reads the width but einsum itself."""
    model = net(
        lambda m, x: (
            torch.einsum("bnh->bn", m.a(x).tanh())
            + torch.einsum("bii->b", m.c(x[:, 0]).unsqueeze(2) * m.d(x[:, 1]).unsqueeze(1))[:, None]
        ),
        a=nn.Linear(8, 6),
        c=nn.Linear(8, 6),
        d=nn.Linear(8, 6),
    )
    x = noise(4, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    a, c = keeps(pruned, "a.weight", 0), keeps(pruned, "c.weight", 0)
    assert c == keeps(pruned, "d.weight", 0)
    want = model.a(x)[..., a].tanh().sum(-1)
    want = want + (model.c(x[:, 0])[:, c] * model.d(x[:, 1])[:, c]).sum(1, keepdim=True)
    require_equal(pruned.model(x), want)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "top-k"])
def test_stacked_experts_with_a_router(gate):
    """Hidden neurons of all experts go; whole experts only where the gates do not compare them."""

    def run(m, x):
        g = m.r(x)
        g = g.sigmoid() if gate == "sigmoid" else g.softmax(-1)
        if gate == "top-k":
            best, where = g.topk(2, -1)
            g = torch.zeros_like(g).scatter(-1, where, best)
        h = torch.einsum("bni,eih->bneh", x, m.w).relu()
        return m.o(torch.einsum("bneh,eho,bne->bno", h, m.v, g).tanh())

    model = net(run, r=nn.Linear(8, 4), w=param(4, 8, 6), v=param(4, 6, 7), o=nn.Linear(7, 3))
    x = noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random", only=("w",))

    assert pruned.proof.outcome == "proved"
    assert pruned.model.v.shape[:2] == ((2, 3) if gate == "sigmoid" else (4, 3))
    small = dict(model.named_parameters())
    for axis in pruned.plan.axes:
        kept = torch.tensor(axis.keep)
        small[axis.parameter] = small[axis.parameter].index_select(axis.dim, kept)
    require_equal(pruned.model(x), torch.func.functional_call(model, small, (x,)))


def test_letters_that_are_not_written():
    """Without an arrow: the dots, then letters that occur once, in alphabetical order."""
    assert terms_of("bj,ij", (2, 2)).result == "bi"
    dots = terms_of("...j,jk", (4, 2))
    assert dots.operands[0][:3] + "k" == dots.result
    one, two = terms_of("...i,...i->...", (3, 2)).operands
    assert two == one[1:]
