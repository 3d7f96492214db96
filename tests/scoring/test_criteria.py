"""Criteria: scores over whole coupled units, against NumPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import InternalError, UsageError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.scoring.criteria import criterion_names, find_criterion
from edgeprune.scoring.scores import score


class TwoLayers(nn.Module):
    """a (4 -> 3), ReLU, b (3 -> 2): three units, each a row of a, a bias and a column of b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.b = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.fixture
def net() -> TwoLayers:
    """Two layers with seeded weights."""
    torch.manual_seed(3)
    return TwoLayers()


def _analysis(net: nn.Module) -> Analysis:
    return analyze(net, (torch.randn(2, 4),))


@pytest.mark.parametrize("power", [1, 2])
def test_norms_cover_the_whole_coupled_unit(net: TwoLayers, power: int) -> None:
    """l1 and l2 of a unit are the norm of its row, its bias and its reader column together."""
    row, bias, column = (
        tensor.detach().double().numpy() for tensor in (net.a.weight, net.a.bias, net.b.weight)
    )
    expected = [
        np.linalg.norm(np.concatenate([row[i], bias[i : i + 1], column[:, i]]), ord=power)
        for i in range(3)
    ]

    got = score(_analysis(net), f"l{power}").values["a.weight"]

    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_random_depends_on_seed_and_group_alone(net: TwoLayers) -> None:
    """The same seed gives the same scores whatever the weights; another seed gives others."""
    analysis = _analysis(net)
    first = score(analysis, "random", seed=1).values["a.weight"]
    with torch.no_grad():
        net.a.weight.mul_(5.0)

    assert np.array_equal(first, score(_analysis(net), "random", seed=1).values["a.weight"])
    assert not np.array_equal(first, score(analysis, "random", seed=2).values["a.weight"])


@pytest.mark.parametrize("name", criterion_names())
def test_every_criterion_keeps_the_contract(net: TwoLayers, name: str) -> None:
    """One finite float64 a unit, no weight changed."""
    before = {key: value.clone() for key, value in net.state_dict().items()}

    values = score(_analysis(net), name).values["a.weight"]

    assert values.dtype == np.float64
    assert values.shape == (3,)
    assert np.isfinite(values).all()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_an_unknown_criterion_lists_the_known_ones() -> None:
    """The error names what there is."""
    with pytest.raises(UsageError, match=r"expected one of l1, l2, random, got 'l3'"):
        find_criterion("l3")


def test_a_weight_that_is_not_finite_is_named(net: TwoLayers) -> None:
    """A NaN in a weight cannot be ranked: the group is named."""
    analysis = _analysis(net)
    with torch.no_grad():
        net.a.weight[0, 0] = float("nan")

    with pytest.raises(InternalError, match=r"score at a\.weight: expected 3 finite numbers"):
        score(analysis, "l2")
