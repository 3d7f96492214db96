"""An operand without a label beside one with: either pinned, or right; never silently wrong.

`meet` is the only place where values come together, so one test a family goes through it.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import conv, image, net, noise, pruned_like_silenced
from torch import nn

from edgeprune.graph.analysis import analyze

COUNT = torch.arange(8.0)

# Each takes features y (B, 5, 8) of a layer, data d (B, 5, 8), and lays one against the other.
MEETINGS = {
    "sum": lambda y, d: y + d,
    "product": lambda y, d: y * d,
    "where": lambda y, d: torch.where(d > 0, y, d),
    "comparison": lambda y, d: (y > d).float() * y,
    "in place": lambda y, d: y.clone().add_(d),
    "copied over": lambda y, d: y.clone().copy_(d) + y,
    "arange": lambda y, d: y * torch.arange(8.0),
    "one-hot of positions": lambda y, d: y + torch.eye(8)[2],
    "unknown op": lambda y, d: y + d.sort(-1)[0],
    "unknown op of itself": lambda y, d: y + y.sort(-1)[0],
    "stack": lambda y, d: torch.stack([y, d]).sum(0),
    "cat along tokens": lambda y, d: torch.cat([y, d], 1),
    "matrix product": lambda y, d: (y @ d.transpose(1, 2)) @ d,
    "matrix product, left": lambda y, d: d @ (y.transpose(1, 2) @ y),
    "layer_norm weights": lambda y, d: F.layer_norm(y, (8,), d[0, 0], d[0, 1]),
    "attention keys": lambda y, d: F.scaled_dot_product_attention(y, d, d),
    "attention values": lambda y, d: F.scaled_dot_product_attention(d, d, y),
    "shape of data": lambda y, d: y.flip(-1).view_as(d) + d,
    "expanded to data": lambda y, d: y.mean(1, keepdim=True).expand_as(d) * 1,
    "lerp": lambda y, d: torch.lerp(y, d, d.sigmoid()),
    "prelu slopes": lambda y, d: F.prelu(y.transpose(1, 2), d[0, 0].abs()).transpose(1, 2),
    "batch_norm statistics": lambda y, d: F.batch_norm(
        y.transpose(1, 2), d[0, 0], d[0, 1].abs() + 1
    ).transpose(1, 2),
    "rolled": lambda y, d: y.roll(1, -1) + d,
    "linear": lambda y, d: F.linear(y, d[0]).sum(-1, keepdim=True) + d,
    "addmm": lambda y, d: torch.baddbmm(y, d, d.transpose(1, 2) @ y),
}


@pytest.mark.parametrize("meeting", MEETINGS)
def test_data_beside_features_is_pinned_or_right(meeting):
    """If anything of the layer may go, the shrunk net is the eager net with silenced readers."""
    lay = MEETINGS[meeting]
    model = net(
        lambda m, x, d: m.b(lay(m.a(x), d)) + m.d(m.c(x).tanh()).mean(1, keepdim=True),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 4),
        c=nn.Linear(6, 5),
        d=nn.Linear(5, 4),
    )
    pruned = pruned_like_silenced(model, noise(2, 5, 6), noise(2, 5, 8), dynamic_batch=False)

    # What does not meet the data is never pinned with it.
    assert pruned.model.c.weight.shape[0] < 5


def test_the_pin_names_the_line_of_the_meeting():
    """A mask of full size from data: the pin says so and where."""
    analysis = analyze(
        net(lambda m, x, mask: m.b(m.a(x) * mask), a=conv(3, 8), b=conv(8, 4)),
        (image(), noise(2, 8, 6, 6)),
    )

    assert analysis.groups == ()
    pin = next(pin for pin in analysis.pins if (pin.parameter, pin.dim) == ("a.weight", 0))
    assert pin.reason == "meets a value of full size that cannot shrink"
    assert ".py:" in pin.where
    assert pin.node == "mul"


def test_a_mask_of_size_one_imposes_nothing():
    """(B, 1, 6, 6) broadcasts over channels: they stay removable."""
    model = net(lambda m, x, mask: m.b(m.a(x) * mask), a=conv(3, 8), b=conv(8, 4))
    pruned = pruned_like_silenced(model, image(), noise(2, 1, 6, 6))

    assert [group.width for group in pruned.analysis.groups] == [8]


@pytest.mark.parametrize("buffer", [True, False])
def test_a_constant_of_full_size_shrinks(buffer):
    """A buffer has positions of its own; numbers counted in forward become a table that has."""
    scale = (lambda m: m.s) if buffer else (lambda m: torch.arange(1.0, 9.0))
    model = net(
        lambda m, x: m.b(m.a(x) * scale(m)), a=nn.Linear(6, 8), b=nn.Linear(8, 4), s=COUNT + 1
    )
    pruned = pruned_like_silenced(model, noise(2, 6))

    (name,) = ["s"] if buffer else pruned.model.tables
    assert pruned.model.get_buffer(name).shape == (4,)
