"""Removals that are no whole units of the dense model are carried out and proved in passes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import conv, image, net, noise
from torch import nn

from edgeprune.surgery.compose import compose
from edgeprune.surgery.prove import prove
from edgeprune.surgery.prune import prune
from edgeprune.surgery.shrink import passes, shrink


def attention(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Two heads of four dims each."""
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))


def two_heads() -> tuple[nn.Module, torch.Tensor]:
    """A net and its input."""
    layers = {name: nn.Linear(6, 8) for name in "qkv"}
    return net(attention, o=nn.Linear(8, 5), **layers), noise(2, 7, 6)


def two_groups() -> tuple[nn.Module, torch.Tensor]:
    """A net and its input."""
    model = net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 8, groups=2), c=conv(8, 4))
    return model, image()


@pytest.mark.parametrize("made", [two_heads, two_groups])
def test_a_second_plan_may_remove_a_part_of_the_one_unit_left(made):
    """Half of two heads, then half of the dims of the one left: composed, replayed, proved."""
    model, x = made()
    first = prune(model, (x,), keep_fraction=0.5)
    second = prune(first.model, (x,), keep_fraction=0.5)
    assert second.plan.axes
    both = compose(first.analysis, first.plan, second.plan)

    replayed = shrink(first.analysis, both)

    assert len(passes(first.analysis, both)) == 2
    wanted, got = second.model.state_dict(), replayed.state_dict()
    assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in wanted.items()}
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    proof = prove(first.analysis, both, replayed)
    assert proof.outcome == "proved", proof.why
    with torch.no_grad():
        replayed.get_submodule("o" if made is two_heads else "c").bias.add_(1.0)
    assert prove(first.analysis, both, replayed).outcome == "failed"


def test_a_plan_of_whole_units_takes_one_pass():
    """What the dense model offers itself is carried out at once."""
    model, x = two_heads()
    first = prune(model, (x,), keep_fraction=0.5)

    assert len(passes(first.analysis, first.plan)) == 1
