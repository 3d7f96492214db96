"""Regions under autocast and gradient switches: the same numbers, and units inside them."""

from __future__ import annotations

import pytest
import torch
from small_nets import net, noise, pruned_like_silenced
from torch import nn

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.analysis import analyze


def layers():
    """Three linear layers in a row."""
    return {"a": nn.Linear(8, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 4)}


def without_autocast(m, x):
    """A middle layer that must not run in half precision, and a second value beside it."""
    y = m.a(x).tanh()
    with torch.autocast("cpu", enabled=False):
        z = m.b(y.float()).tanh()
        w = z + y
    return m.c(z) + m.c(w)


def with_gradients(m, x):
    """A middle layer for which gradients are switched on, inside a region without autocast."""
    with torch.autocast("cpu", enabled=False):
        y = m.a(x).tanh()
        with torch.enable_grad():
            z = m.b(y).tanh()
    return m.c(z.detach())


@pytest.mark.parametrize("run", [without_autocast, with_gradients])
def test_a_region_that_changes_no_number_is_seen_through(run):
    """Units inside and across the region go, and the model computes what the eager one does."""
    pruned = pruned_like_silenced(net(run, **layers()), noise(2, 8))

    assert {axis.parameter for axis in pruned.plan.axes} >= {"a.weight", "b.weight", "c.weight"}
    assert not any("higher_order" in str(n.target) for n in pruned.model.graph.nodes)
    assert not any(isinstance(child, torch.fx.GraphModule) for child in pruned.model.children())


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.a(x)
        return self.b(y.float())


def test_a_region_in_another_precision_is_refused():
    """bfloat16 inside forward() cannot be compared in float64: the line is named."""
    with pytest.raises(ModelNotSupported, match="autocast to torch.bfloat16") as caught:
        analyze(Half(), (noise(2, 8),))

    line = Half.forward.__code__.co_firstlineno + 2
    assert caught.value.where.endswith(f"test_inlined_regions.py:{line}")
