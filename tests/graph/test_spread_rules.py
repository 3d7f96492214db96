"""Variance and deviation over a removable axis: written as means of squares, which are exact."""

from __future__ import annotations

import pytest
import torch
from small_nets import (
    between_features,
    conv,
    image,
    net,
    noise,
    pruned_like_silenced,
    require_equal,
)
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.pipeline.equality import prove_whole
from edgeprune.surgery.compose import compose
from edgeprune.surgery.prune import prune

SPELLINGS = {
    "var": (lambda y: y.var(-1, keepdim=True), 1, False),
    "var, biased": (lambda y: y.var(-1, unbiased=False, keepdim=True), 0, False),
    "var, correction 2": (lambda y: torch.var(y, -1, correction=2, keepdim=True), 2, False),
    "std": (lambda y: y.std(-1).unsqueeze(-1), 1, True),
    "std, biased": (lambda y: torch.std(y, dim=-1, correction=0, keepdim=True), 0, True),
    "var_mean": (lambda y: torch.var_mean(y, -1, unbiased=False, keepdim=True)[0], 0, False),
    "std_mean": (lambda y: torch.std_mean(y, -1, keepdim=True)[0], 1, True),
}


def dense_variance(y: torch.Tensor, count: int, correction: int) -> torch.Tensor:
    """Variance of the kept positions with mean and sum of squares by the dense count."""
    mean = y.sum(-1, keepdim=True) / count
    return (y - mean).square().sum(-1, keepdim=True) / (count - correction)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_variance_of_the_width_keeps_the_dense_count(name):
    """6 features, 3 kept: mean = sum / 6, variance = sum of squares / (6 - correction); twice."""
    spelling, correction, rooted = SPELLINGS[name]
    model = between_features(lambda y: y / (spelling(y) + 0.1), 6, 6)
    x = noise(3, 8)
    pruned = prune(model, (x,), criterion="random")
    again = prune(pruned.model, (x,), keep_fraction=0.7)

    whole = compose(pruned.analysis, pruned.plan, again.plan)
    for small, kept in (
        (pruned.model, list(pruned.plan.groups[0].keep)),
        (again.model, list(next(a.keep for a in whole.axes if a.parameter == "a.weight"))),
    ):
        y = model.a(x)[:, kept]
        spread = dense_variance(y, 6, correction)
        y = y / ((spread.sqrt() if rooted else spread) + 0.1)
        require_equal(small(x), y @ model.b.weight[:, kept].T + model.b.bias)
    assert pruned.proof.outcome == again.proof.outcome == "proved"
    assert prove_whole(pruned.analysis, whole, again.model, seed=1).outcome == "proved"


def test_a_variance_over_all_dims_but_the_batch():
    """Over channels and space at once: the count of both, on any batch."""

    def run(m, x):
        y = m.a(x)
        return m.b(y / (y.var((1, 2, 3), keepdim=True) + 0.1))

    model = net(run, a=conv(3, 6), b=conv(6, 4))
    x = image(5, size=5)
    pruned = prune(model, (image(size=5),), criterion="random")

    kept = list(pruned.plan.groups[0].keep)
    y = model.a(x)[:, kept]
    spread = dense_variance(y.flatten(1), 150, 1).reshape(-1, 1, 1, 1)
    y = y / (spread + 0.1)
    expected = nn.functional.conv2d(y, model.b.weight[:, kept], model.b.bias, padding=1)
    require_equal(pruned.model(x), expected)


def test_a_count_that_depends_on_the_batch_stays_one_operator():
    """Unbiased over batch and channels: steps would bake the batch in, so the width is pinned."""
    model = between_features(lambda y: y / (y.var((0, 1), keepdim=True) + 0.1))
    analysis = analyze(model, (noise(3, 8),))

    assert analysis.groups == ()
    assert any("a statistic is taken over this axis" in pin.reason for pin in analysis.pins)


def test_a_variance_over_space_stays_one_operator():
    """No removable axis is summed: the graph is as the user wrote it, and channels go."""
    model = net(
        lambda m, x: m.b(m.a(x) / (m.a(x).var((2, 3), keepdim=True) + 0.1)),
        a=conv(3, 8),
        b=conv(8, 4),
    )
    pruned = pruned_like_silenced(model, image())

    assert "torch.ops.aten.var" in str(pruned.model.code)


def test_a_variance_over_the_head_dim_lets_heads_go():
    """Within each head: whole heads, no statistic changes."""
    model = between_features(lambda y: y.unflatten(-1, (3, 4)).tanh().var(-1), 12, 3)
    pruned = prune(model, (noise(2, 8),), criterion="random")

    assert pruned.analysis.unit_of("a.weight", 0, 5).slots[0].positions == (4, 5, 6, 7)
    assert pruned.proof.outcome == "proved"
