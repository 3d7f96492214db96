"""What a group would save is what its removal saves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.graph.capture import capture
from edgeprune.planning.allocate import Request
from edgeprune.planning.cost import cost
from edgeprune.planning.plan import make_plan
from edgeprune.surgery.saving import savings
from edgeprune.surgery.shrink import shrink
from tests.graph.small_nets import conv, net, noise


def attention(m, x):
    """Two heads of 3 dims with a shortcut around them, then a norm and a reader."""
    q, k, v = (m.qkv(x).reshape(-1, 5, 3, 2, 3).permute(2, 0, 3, 1, 4)).unbind()
    heads = nn.functional.scaled_dot_product_attention(q, k, v)
    return m.out(m.norm(x + m.proj(heads.transpose(1, 2).reshape(-1, 5, 6))))


NETS = {
    "shortcut": (
        net(
            lambda m, x: m.c((y := m.bn(m.a(x))) + m.b(y)),
            a=conv(3, 8),
            bn=nn.BatchNorm2d(8),
            b=conv(8, 8),
            c=conv(8, 4),
        ),
        noise(2, 3, 6, 6),
    ),
    "attention": (
        net(
            lambda m, x: attention(m, m.first(x)),
            first=nn.Linear(4, 6),
            qkv=nn.Linear(6, 18),
            proj=nn.Linear(6, 6),
            norm=nn.LayerNorm(6),
            out=nn.Linear(6, 3),
        ),
        noise(2, 5, 4),
    ),
    "tied": (
        net(
            lambda m, x: nn.functional.linear(m.norm(m.table(x)), m.table.weight),
            table=nn.Embedding(9, 6),
            norm=nn.LayerNorm(6),
        ),
        torch.arange(6).reshape(2, 3),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_saving_is_the_difference_of_costs(name):
    """One unit removed, and all but one: cost of the dense model less that of the shrunk one."""
    model, x = NETS[name]
    analysis = analyze(model, (x,))
    dense = cost(analysis.captured)
    found = savings(analysis)

    assert set(found) == {group.name for group in analysis.groups}
    for group in analysis.groups:
        for goes, saved in (
            (np.arange(group.width) == 0, found[group.name].unit),
            (np.arange(group.width) > 0, found[group.name].most),
        ):
            removed = {g.name: np.zeros(g.width, dtype=bool) for g in analysis.groups}
            removed[group.name] = goes
            small = shrink(analysis, make_plan(analysis, removed, Request(), "by hand"))
            after = cost(capture(small, analysis.captured.args))
            assert saved.params == dense.params - after.params
            assert saved.macs == dense.macs - after.macs
