"""Weights computed through a statistic are folded; the oracle silences inputs, never parameters.

Zeroing the removed parameters instead would change the norm of what stays: a wrong reference.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from small_nets import conv, image, net, noise, param, pruned_like_silenced, require_equal
from torch import nn

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune
from edgeprune.surgery.user_class import to_module

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    # The old weight_norm and spectral_norm set a plain attribute in their forward hooks.
    pytest.mark.filterwarnings("ignore:The tensor attributes? self:UserWarning"),
]


class Standardised(nn.Conv2d):
    """Weight standardisation by batch_norm over each filter, as timm's StdConv2d does it."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class StandardisedByHand(nn.Conv2d):
    """The same, written out with a gain a filter."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-6) * 0.7, self.bias, padding=1)


MAKERS = {
    "weight_norm": lambda i, o: nn.utils.weight_norm(nn.Conv2d(i, o, 3, padding=1)),
    "weight_norm over all": lambda i, o: nn.utils.weight_norm(
        nn.Conv2d(i, o, 3, padding=1), dim=None
    ),
    "parametrized weight_norm": lambda i, o: nn.utils.parametrizations.weight_norm(
        nn.Conv2d(i, o, 3, padding=1)
    ),
    "spectral_norm": lambda i, o: nn.utils.spectral_norm(nn.Conv2d(i, o, 3, padding=1)),
    "parametrized spectral_norm": lambda i, o: nn.utils.parametrizations.spectral_norm(
        nn.Conv2d(i, o, 3, padding=1)
    ),
    "standardised": lambda i, o: Standardised(i, o, 3, padding=1),
    "standardised by hand": lambda i, o: StandardisedByHand(i, o, 3, padding=1),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_reparametrised_convolutions(kind):
    """Maker and reader re-parametrised: the shrunk net is the eager net with silenced inputs."""
    make = MAKERS[kind]
    model = net(
        lambda m, x: m.c(m.b(m.a(x).tanh()).tanh()), a=make(3, 8), b=make(8, 6), c=conv(6, 4)
    )
    pruned = pruned_like_silenced(model, image())

    assert [group.width for group in pruned.analysis.groups] == [8, 6]
    assert pruned.model.a.weight.shape == (4, 3, 3, 3)
    assert pruned.model.b.weight.shape == (3, 4, 3, 3)


def test_zeroed_parameters_would_be_a_wrong_reference():
    """The oracle matters: with zeroed raw weights, weight_norm gives another function."""
    make = MAKERS["parametrized weight_norm"]
    model = net(lambda m, x: m.c(m.b(x).tanh()), b=make(3, 8), c=make(8, 4))
    x = image(3)
    pruned = prune(model, (x,), criterion="random")
    kept = next(a.keep for a in pruned.plan.axes if (a.parameter, a.dim) == ("c.weight", 1))

    zeroed = copy.deepcopy(model)
    raw = zeroed.c.parametrizations.weight.original1
    raw.data[:, [i for i in range(8) if i not in kept]] = 0
    with pytest.raises(AssertionError):
        require_equal(pruned.model(x), zeroed(x))


def test_orthogonal_linear():
    """A weight through a matrix exponential or Householder product is folded as well."""
    model = net(
        lambda m, x: m.b(m.a(x).tanh()),
        a=nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)),
        b=nn.Linear(8, 4),
    )
    pruned_like_silenced(model, noise(2, 8))


def test_low_rank_update_of_a_weight():
    """W + B A (LoRA): the sum is what is used, so it becomes the weight."""
    model = net(
        lambda m, x: m.b(F.linear(x, m.a.weight + m.u @ m.v).tanh()),
        a=nn.Linear(8, 6, bias=False),
        u=param(6, 2),
        v=param(2, 8),
        b=nn.Linear(6, 4),
    )
    pruned = pruned_like_silenced(model, noise(2, 8))

    assert "u" not in pruned.model.state_dict()


def test_weights_combined_element_by_element_need_no_folding():
    """RepVGG: a 3x3 kernel plus a padded 1x1 kernel; both keep their names and lose the rows."""

    def run(m, x):
        weight = m.a.weight + F.pad(m.b.weight, (1, 1, 1, 1))
        return m.c(F.conv2d(x, weight, m.a.bias + m.b.bias, padding=1))

    model = net(run, a=conv(3, 8), b=conv(3, 8, 1), c=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    assert pruned.model.a.weight.shape == (4, 3, 3, 3)
    assert pruned.model.b.weight.shape == (4, 3, 1, 1)


def test_a_masked_weight_shrinks_with_its_mask():
    """W * mask, both held by the model: the mask loses the same rows."""
    mask = (torch.arange(48).reshape(6, 8) % 3 > 0).float()
    model = net(
        lambda m, x: m.b(F.linear(x, m.a.weight * m.mask, m.a.bias)),
        a=nn.Linear(8, 6),
        mask=mask,
        b=nn.Linear(6, 4),
    )

    assert pruned_like_silenced(model, noise(2, 8)).model.mask.shape == (3, 8)


def test_a_table_made_by_a_weight_does_not_take_the_weights_name():
    """Positions through a linear layer are a table of another shape; the class cannot take it."""
    model = net(
        lambda m, x: m.b((m.a(x) @ m.pos(m.table).t()).tanh()),
        a=nn.Linear(4, 8),
        pos=nn.Linear(6, 8),
        b=nn.Linear(7, 3),
        table=torch.randn(7, 6),
    )
    pruned = prune(model, (noise(2, 4),))

    assert pruned.proof.outcome == "proved"
    assert "pos.weight" not in pruned.model.state_dict()
    with pytest.raises(ModelNotSupported, match="pos.weight_effective"):
        to_module(pruned, model)


def test_folding_leaves_the_users_model_alone():
    """The user's parametrised module still has its two raw tensors afterwards."""
    make = MAKERS["parametrized weight_norm"]
    model = net(lambda m, x: m.b(m.a(x).tanh()), a=make(3, 8), b=conv(8, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}

    analyze(model, (image(),))
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
