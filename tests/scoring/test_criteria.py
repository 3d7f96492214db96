"""Criteria: scores over whole coupled units, against NumPy, autograd and the loss itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

import edgeprune
from edgeprune.errors import DataError, InternalError, UsageError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.graph.module import CapturedModule
from edgeprune.scoring import criteria
from edgeprune.scoring.criteria import GroupWeights, criterion, criterion_names, find_criterion
from edgeprune.scoring.scores import score

GRADIENTS = ("gradient", "taylor")


class TwoLayers(nn.Module):
    """a (4 -> 3), ReLU, b (3 -> 2): three units, each a row of a, a bias and a column of b."""

    def __init__(self, units: int = 3) -> None:
        super().__init__()
        self.a = nn.Linear(4, units)
        self.b = nn.Linear(units, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.fixture
def net() -> TwoLayers:
    """Two layers with seeded weights."""
    torch.manual_seed(3)
    return TwoLayers()


def _analysis(net: nn.Module) -> Analysis:
    return analyze(net, (torch.randn(2, 4),))


def _batches(count: int = 3, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 4, generator=draw), torch.randint(2, (8,), generator=draw))
        for _ in range(count)
    ]


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


def _by_hand(net: TwoLayers, name: str, loss) -> np.ndarray:
    """Autograd on the user's own model, one unit at a time, averaged over the batches."""
    per_batch = []
    for inputs, target in _batches():
        net.zero_grad()
        loss(net(inputs), target).backward()
        scores = []
        for unit in range(3):
            own = [(net.a.weight, unit), (net.a.bias, unit), (net.b.weight, (slice(None), unit))]
            products = [(p[at] * p.grad[at]).sum().item() for p, at in own]
            squares = [p.grad[at].square().sum().item() for p, at in own]
            scores.append(sum(products) ** 2 if name == "taylor" else sum(squares) ** 0.5)
        per_batch.append(scores)
    net.zero_grad()
    return np.mean(per_batch, axis=0)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_model(net: TwoLayers, name: str) -> None:
    """taylor and gradient of a unit are what autograd gives by hand, as means over batches."""

    def squared(outputs, target):
        return (outputs[:, 0] - target).square().mean()

    own = score(_analysis(net), name, _batches(), squared).values["a.weight"]
    default = score(_analysis(net), name, iter(_batches())).values["a.weight"]

    np.testing.assert_allclose(own, _by_hand(net, name, squared), rtol=1e-4)
    np.testing.assert_allclose(default, _by_hand(net, name, F.cross_entropy), rtol=1e-4)


def test_a_frozen_weight_counts_like_any_other(net: TwoLayers) -> None:
    """`requires_grad=False` is about training: it changes no score."""
    free = score(_analysis(net), "taylor", _batches()).values["a.weight"]
    net.a.weight.requires_grad_(False)
    net.b.requires_grad_(False)

    frozen = score(_analysis(net), "taylor", _batches()).values["a.weight"]

    assert np.array_equal(free, frozen)


@pytest.mark.parametrize("name", GRADIENTS)
def test_scoring_leaves_no_trace(name: str) -> None:
    """Weights, statistics, gradients, flags and modes are what they were, dropout stays off."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 2)
    ).eval()
    model[0].weight.requires_grad_(False)
    analysis = _analysis(model)
    module = analysis.captured.module
    before = copy.deepcopy(module.state_dict())

    first = score(analysis, name, _batches()).values["0.weight"]
    again = score(analysis, name, _batches()).values["0.weight"]

    assert np.array_equal(first, again)
    for owner in (module, model):
        assert all(torch.equal(before[key], value) for key, value in owner.state_dict().items())
        assert all(parameter.grad is None for parameter in owner.parameters())
        assert not owner.training
    flags = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    assert [name for name, flag in flags.items() if not flag] == ["0.weight"]


def _trained(units: int) -> tuple[TwoLayers, torch.Tensor, torch.Tensor]:
    """A net that has learned which side of a curve its inputs lie on."""
    torch.manual_seed(1)
    inputs = torch.randn(400, 4)
    target = (inputs[:, 0] * inputs[:, 1] + inputs[:, 2] > 0).long()
    net = TwoLayers(units)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), target).backward()
        optimizer.step()
    return net, inputs, target


@pytest.mark.parametrize(("loudness", "least"), [(0.01, 0.99), (1.0, 0.7)], ids=["small", "full"])
def test_taylor_ranks_units_by_what_their_loss_would_cost(loudness: float, least: float) -> None:
    """Against the truth, the change of the loss when each unit is silenced.

    The smaller the units, the better the first order; size alone (l2) says less in both cases.
    """
    net, inputs, target = _trained(24)
    with torch.no_grad():
        net.b.weight.mul_(loudness)
        dense = F.cross_entropy(net(inputs).double(), target)
        truth = []
        for unit in range(24):
            hidden = torch.relu(net.a(inputs))
            hidden[:, unit] = 0
            silenced = F.cross_entropy(net.b(hidden).double(), target)
            truth.append(abs(float(silenced - dense)))

    by_taylor = score(_analysis(net), "taylor", [(inputs, target)]).values["a.weight"]
    by_size = score(_analysis(net), "l2").values["a.weight"]

    agreement = spearmanr(truth, by_taylor).statistic
    assert agreement > least
    assert agreement > spearmanr(truth, by_size).statistic


def _swapped(net: TwoLayers, order: list[int]) -> TwoLayers:
    """The same function with its units in another order."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.a.weight.copy_(net.a.weight[order])
        other.a.bias.copy_(net.a.bias[order])
        other.b.weight.copy_(net.b.weight[:, order])
    return other


@pytest.mark.parametrize("name", criterion_names())
def test_every_criterion_keeps_the_contract(name: str) -> None:
    """One finite float64 a unit, no weight changed, units in any order, dead units last."""
    torch.manual_seed(3)
    net = TwoLayers(5)
    before = {key: value.clone() for key, value in net.state_dict().items()}

    values = score(_analysis(net), name, _batches()).values["a.weight"]

    assert values.dtype == np.float64
    assert values.shape == (5,)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    if name == "random":
        return
    order = [3, 0, 4, 2, 1]
    moved = score(_analysis(_swapped(net, order)), name, _batches()).values["a.weight"]
    np.testing.assert_allclose(moved, values[order], rtol=1e-5)
    with torch.no_grad():
        net.a.weight[2], net.a.bias[2], net.b.weight[:, 2] = 0.0, -1.0, 0.0
        net.a.bias[2] = 0.0 if name in ("l1", "l2") else -1.0
    dead = score(_analysis(net), name, _batches()).values["a.weight"]
    assert dead.argmin() == 2
    assert dead[2] == 0.0


def test_a_criterion_of_ones_own_sees_what_it_asked_for(net: TwoLayers, monkeypatch) -> None:
    """One decorator; with gradients=True each slot has one, without it the batches are not read."""
    monkeypatch.setattr(criteria, "_CRITERIA", dict(criteria._CRITERIA))
    seen: list[tuple[str, tuple[int, ...] | None]] = []

    @criterion("mine")
    def mine(group: GroupWeights) -> np.ndarray:
        seen.extend((slot.table.parameter, None) for slot in group.slots if slot.gradient is None)
        return np.zeros(group.width)

    @criterion("slopes", gradients=True)
    def slopes(group: GroupWeights) -> np.ndarray:
        seen.extend((s.table.parameter, tuple(s.gradient.shape)) for s in group.slots)
        return np.zeros(group.width)

    def unread():
        raise AssertionError("a criterion of weights reads no data")
        yield

    score(_analysis(net), "mine", unread())
    assert seen == [("a.weight", None), ("a.bias", None), ("b.weight", None)]
    seen.clear()
    score(_analysis(net), "slopes", _batches(1))
    assert seen == [("a.weight", (3, 4)), ("a.bias", (3,)), ("b.weight", (2, 3))]


def test_a_criterion_that_forgot_to_ask_for_gradients_is_told(net: TwoLayers, monkeypatch) -> None:
    """Using a gradient without registering for it names the remedy."""
    monkeypatch.setattr(criteria, "_CRITERIA", dict(criteria._CRITERIA))
    criterion("forgot")(find_criterion("taylor").function)

    with pytest.raises(InternalError, match=r"Register the criterion with gradients=True"):
        score(_analysis(net), "forgot")


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, r"expected labelled batches, .* got none\. Give batches="),
        ([], r"expected at least one batch of \(inputs, target\), got none"),
        ([(torch.zeros(2, 4), None)], r"batch 0: expected a target, .* choose a criterion of the"),
        ([torch.zeros(2, 4, 1)], r"expected a pair \(inputs, target\), got Tensor"),
        (
            [(torch.full((2, 4), float("nan")), torch.zeros(2))],
            r"batch 0 of the scored samples, at its inputs",
        ),
        (
            [(torch.zeros(2, 4), torch.tensor([0, 7]))],
            r"at batch 0 of the scored samples: .* integer targets below C",
        ),
    ],
    ids=["none", "empty", "unlabelled", "no pair", "NaN", "labels out of range"],
)
def test_batches_that_give_no_gradient_are_refused(net, name, batches, message) -> None:
    """A criterion of gradients says what it needs, and what else to choose."""
    with pytest.raises(DataError, match=message):
        score(_analysis(net), name, batches)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, target: outputs.sum() * float("inf"), r"expected a finite loss, got"),
        (lambda outputs, target: torch.tensor(1.0), r"expected a loss that depends on the weights"),
        (lambda outputs, target: (outputs * 0).sum().sqrt(), r"expected a finite gradient"),
    ],
    ids=["infinite", "constant", "root at 0"],
)
def test_a_loss_without_gradient_is_refused(net: TwoLayers, loss, message) -> None:
    """A loss that is not finite, or does not come from the outputs, ranks nothing."""
    with pytest.raises(DataError, match=message):
        score(_analysis(net), "taylor", _batches(), loss)


def test_prune_passes_batches_and_loss_on(net: TwoLayers) -> None:
    """`prune(criterion="taylor", batches=..., loss=...)` keeps the units that score says."""

    def squared(outputs, target):
        return (outputs[:, 0] - target).square().mean()

    pruned = edgeprune.prune(
        net, (torch.randn(2, 4),), keep_fraction=0.34, criterion="taylor", batches=_batches(),
        loss=squared,
    )  # fmt: skip

    values = score(_analysis(net), "taylor", _batches(), squared).values["a.weight"]
    (axis,) = [axis for axis in pruned.plan.axes if axis.parameter == "a.bias"]
    assert list(axis.keep) == [values.argmax()]
    assert isinstance(pruned.model, CapturedModule)


def test_an_unknown_criterion_lists_the_known_ones() -> None:
    """The error names what there is."""
    with pytest.raises(
        UsageError, match=r"expected one of gradient, l1, l2, random, taylor, got 'l3'"
    ):
        find_criterion("l3")


def test_a_weight_that_is_not_finite_is_named(net: TwoLayers) -> None:
    """A NaN in a weight cannot be ranked: the weight is named, and it is the caller's to mend."""
    analysis = _analysis(net)
    with torch.no_grad():
        net.a.weight[0, 0] = float("nan")

    with pytest.raises(UsageError, match=r"scoring at a\.weight: expected finite weights, got NaN"):
        score(analysis, "l2")
