"""Norms, distances and angles over a removable axis: what goes adds nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from small_nets import net, noise, require_equal
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune

NORMS = {
    "F.normalize": lambda y: F.normalize(y, dim=-1),
    "linalg.norm": lambda y: y / torch.linalg.norm(y, dim=-1, keepdim=True),
    "linalg.norm of order 1": lambda y: y / torch.linalg.norm(y, ord=1, dim=-1, keepdim=True),
    "linalg.vector_norm": lambda y: y / (torch.linalg.vector_norm(y, 3, -1, keepdim=True) + 0.1),
    "torch.norm": lambda y: y / torch.norm(y, dim=-1, keepdim=True),
    "aten.norm": lambda y: y / torch.ops.aten.norm.ScalarOpt_dim(y, 2, [-1], True),
    "aten.frobenius_norm": lambda y: y / torch.ops.aten.frobenius_norm.dim(y, [-1], True),
    "sum of squares": lambda y: y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt(),
    "reciprocal of a mean": lambda y: y * (y.abs().mean(-1, keepdim=True) + 1e-6).reciprocal(),
}

PAIRS = {
    "cosine_similarity": lambda y, z: F.cosine_similarity(y, z, dim=-1),
    "pairwise_distance": lambda y, z: F.pairwise_distance(y, z),
    "pairwise_distance of order 1": lambda y, z: F.pairwise_distance(y, z, 1.0, keepdim=True),
    "cdist": lambda y, z: torch.cdist(y, z),
    "cdist of order 1": lambda y, z: torch.cdist(y, z, p=1.0),
}


def with_zeros(model, plan):
    """The eager model whose makers give 0 at what `plan` removes: here, the same as silence."""
    zeroed = copy.deepcopy(model)
    for axis in plan.axes:
        if axis.dim == 0:
            gone = [i for i in range(axis.size) if i not in axis.keep]
            zeroed.get_parameter(axis.parameter).data[gone] = 0
    return zeroed


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_the_width_hears_what_stays(name):
    """Whatever its spelling, the norm is that of the dense features with zeros for what went."""
    model = net(lambda m, x: m.b(NORMS[name](m.a(x))), a=nn.Linear(8, 6), b=nn.Linear(6, 5))
    x = noise(3, 8)
    pruned = prune(model, (x,), criterion="random")

    assert pruned.plan.groups[0].width == 6
    require_equal(pruned.model(x), with_zeros(model, pruned.plan)(x))
    assert pruned.proof.outcome == "proved"


@pytest.mark.parametrize("name", PAIRS)
def test_two_values_compared_over_their_width(name):
    """Both lose the same positions; the comparison of the rest is the dense one with zeros."""
    model = net(
        lambda m, x: PAIRS[name](m.a(x), m.b(x).tanh()), a=nn.Linear(8, 6), b=nn.Linear(8, 6)
    )
    x = noise(3, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    (group,) = pruned.analysis.groups
    assert {("a.weight", 0), ("b.weight", 0)} <= {(t.parameter, t.dim) for t in group.tables}
    require_equal(pruned.model(x), with_zeros(model, pruned.plan)(x))
    assert pruned.proof.outcome == "proved"


@pytest.mark.parametrize("name", PAIRS)
def test_compared_with_data_the_width_stays(name):
    """The data has no unit to lose: pinned."""
    model = net(lambda m, x: PAIRS[name](m.a(x), x), a=nn.Linear(8, 8))

    assert analyze(model, (noise(3, 5, 8),)).groups == ()


def test_a_cosine_classifier():
    """Normalised features against normalised weights of each class."""

    def run(m, x):
        return 16.0 * F.linear(F.normalize(m.a(x)), F.normalize(m.w))

    model = net(run, a=nn.Linear(8, 12), w=nn.Parameter(torch.zeros(5, 12)))
    x = noise(3, 8)
    pruned = prune(model, (x,), criterion="random")

    assert pruned.plan.groups[0].width == 12
    assert pruned.proof.outcome == "proved"


def test_a_nuclear_norm_pins():
    """Singular values are no sum over rows or columns."""

    def run(m, x):
        y = m.a(x).unflatten(-1, (4, 3))
        return m.b(y.flatten(-2) / torch.linalg.matrix_norm(y, "nuc").unsqueeze(-1))

    analysis = analyze(net(run, a=nn.Linear(8, 12), b=nn.Linear(12, 5)), (noise(3, 8),))

    assert analysis.groups == ()
    assert analysis.unknown == ()
