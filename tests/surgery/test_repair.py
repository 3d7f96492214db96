"""Repair: least squares reader by reader, never worse, the bound on memory costs time alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_nets import build, steps
from small_nets import conv, image, net, noise, randomised
from torch import nn

import edgeprune
from edgeprune.errors import UsageError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.graph.module import CapturedModule
from edgeprune.planning.allocate import Request
from edgeprune.planning.plan import Plan, make_plan, plan
from edgeprune.scoring.scores import score
from edgeprune.surgery import repair as repairing
from edgeprune.surgery.repair import refit
from edgeprune.surgery.repair_goals import Goal, goal_of
from edgeprune.surgery.shrink import shrink
from edgeprune.surgery.survivors import survivors

few = settings(
    deadline=None,
    max_examples=15,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def removal(analysis: Analysis, **gone: list[int]) -> Plan:
    """The plan that removes the units named, by group."""
    removed = {group.name: np.zeros(group.width, dtype=bool) for group in analysis.groups}
    for name, units in gone.items():
        removed[name.replace("__", ".")][units] = True
    return make_plan(analysis, removed, Request(), "by hand")


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two states are bit-equal."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_a_layer_gets_the_least_squares_solution(bias, monkeypatch):
    """The weight after repair is SciPy's, from patches cut out by NumPy on the fitted samples."""
    monkeypatch.setattr(repairing, "_STRENGTHS", (1.0,))
    model = randomised(
        net(
            lambda s, x: s.b(torch.relu(s.a(x))).mean((2, 3)),
            a=conv(3, 6),
            b=nn.Conv2d(6, 4, 3, padding=1, bias=bias),
        )
    )
    analysis = analyze(model, (image(2, size=4),))
    decided = removal(analysis, a__weight=[1, 4])
    small = shrink(analysis, decided)
    start = small.b.weight.detach().double().numpy()
    samples = image(40, size=4, seed=7)

    report = refit(analysis, decided, small, [samples[:16], samples[16:]], ridge=1e-2)

    fitted = samples[torch.arange(40) % 4 != 1]
    with torch.no_grad():
        heard = torch.relu(model.a(fitted)).double().numpy()
        wanted = model.b(torch.relu(model.a(fitted))).double().numpy()
    padded = np.pad(heard[:, [0, 2, 3, 5]], ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    X = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 36)
    y = wanted.transpose(0, 2, 3, 1).reshape(-1, 4)
    spread = X - X.mean(0) if bias else X
    pull = np.sqrt(1e-2 * (spread**2).sum() / 36) * np.eye(36)
    left = np.vstack([X, pull])
    right = np.vstack([y, pull @ start.reshape(4, 36).T])
    if bias:
        left = np.hstack([left, (np.arange(len(left)) < len(X))[:, None]])
    solution = scipy.linalg.lstsq(left, right)[0]
    assert [layer.name for layer in report.layers] == ["b.weight"]
    assert report.layers[0].accepted
    assert report.kept
    np.testing.assert_allclose(
        small.b.weight.detach().numpy().reshape(4, 36).T, solution[:36], atol=1e-5
    )
    if bias:
        np.testing.assert_allclose(small.b.bias.detach().numpy(), solution[36], atol=1e-5)


def repeated(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """A net whose units 4-7 repeat a mixture of units 0-3, and calibration samples for it."""
    torch.manual_seed(2)
    mixture = torch.randn(4, 4)
    if kind == "linear":
        a, b, shape = nn.Linear(5, 8), nn.Linear(8, 3), (64, 5)
    elif kind == "conv1d":
        a, b, shape = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 3, 3, stride=2), (64, 3, 12)
    elif kind == "transposed":
        a, b, shape = conv(3, 8), nn.ConvTranspose2d(8, 3, 3, stride=2), (64, 3, 6, 6)
    else:
        a, b, shape = conv(3, 8), nn.Conv2d(8, 4, 3, padding=1), (64, 3, 6, 6)
    model = net(lambda s, x: s.b(s.a(x)), a=a, b=b)
    with torch.no_grad():
        a.weight[4:] = torch.einsum("ij,j...->i...", mixture, a.weight[:4])
        a.bias[4:] = mixture @ a.bias[:4]
    return model, torch.randn(shape)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "transposed"])
def test_what_the_kept_inputs_can_express_is_restored(kind):
    """Removed inputs that are combinations of kept ones cost nothing after repair."""
    model, samples = repeated(kind)
    analysis = analyze(model, (samples[:2],))
    decided = removal(analysis, a__weight=[4, 5, 6, 7])
    small = shrink(analysis, decided)

    report = refit(analysis, decided, small, [samples], ridge=1e-6)

    assert report.output_error_before > 0.1
    assert report.output_error_after < 1e-6
    assert report.samples == 64


class Deep(nn.Module):
    """A chain with a depthwise and a grouped layer, norms and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.wide = nn.Sequential(conv(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU6(inplace=True))
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.narrow = nn.Sequential(conv(12, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depthwise(self.wide(x))
        y = self.narrow(F.gelu(self.grouped(y)))
        y += x
        return self.head(y.mean((2, 3)))


def shrunk_deep() -> tuple[Analysis, Plan, CapturedModule]:
    """The chain, a third of it removed."""
    analysis = analyze(randomised(Deep().eval()), (image(2),))
    decided = plan(analysis, score(analysis), keep_fraction=0.67)
    return analysis, decided, shrink(analysis, decided)


def test_each_kind_of_reader_is_refitted():
    """Ordinary, depthwise and grouped convolution and linear layer all come closer, held out."""
    analysis, decided, small = shrunk_deep()

    report = refit(analysis, decided, small, [image(256, seed=3)])

    assert [layer.name for layer in report.layers if layer.accepted] == [
        "wide.0.weight",
        "depthwise.weight",
        "grouped.weight",
        "narrow.0.weight",
        "head.weight",
    ]
    assert all(layer.error_after < layer.error_before for layer in report.layers)
    assert report.output_error_after < 0.5 * report.output_error_before
    fresh = image(200, seed=4)
    with torch.no_grad():
        want = analysis.captured.module(fresh)
        error = [(m(fresh) - want).square().mean() for m in (small, shrunk_deep()[2])]
    assert error[0] < 0.6 * error[1]


def test_the_bound_on_memory_changes_nothing_but_time(monkeypatch):
    """Running the way again from the last place within bounds gives the same weights, bit by bit.

    The net writes in place: a value that is run again must not have been changed.
    """
    analysis, decided, small = shrunk_deep()
    samples = [image(150, seed=3)]
    refit(analysis, decided, small, samples)
    states = []
    for bound in (0, 200_000, 500_000):
        monkeypatch.setattr(repairing, "_BOUND_BYTES", bound)
        other = shrink(analysis, decided)
        refit(analysis, decided, other, samples)
        states.append(weights(other))

    assert all(same(weights(small), state) for state in states)


def test_a_sum_gets_what_its_other_branch_lost(monkeypatch):
    """The second block mends what the first one lost for good: the sum comes closer.

    Each block is x + up(relu(down(x))); hidden units go in the first alone.
    """
    layers = {f"{way}{block}": nn.Linear(12, 12) for block in "12" for way in ("down", "up")}
    model = net(
        lambda s, x: s.head(
            (y := x + s.up1(torch.relu(s.down1(x)))) + s.up2(torch.relu(s.down2(y)))
        ),
        head=nn.Linear(12, 3),
        **layers,
    )
    samples = [noise(400, 12)]
    analysis = analyze(model, (noise(2, 12),))
    decided = removal(analysis, down1__weight=[0, 1, 2, 3, 4])
    both = shrink(analysis, decided)
    report = refit(analysis, decided, both, samples)
    monkeypatch.setattr(
        repairing, "goal_of", lambda left, module, node, fence: Goal(node=node, reached=node)
    )
    alone = refit(analysis, decided, shrink(analysis, decided), samples)

    # The head is refitted last; what it is given is what counts here.
    assert report.layers[-1].error_before < 0.9 * alone.layers[-1].error_before
    assert report.output_error_after < alone.output_error_after


def test_a_goal_behind_a_norm_is_asked_of_the_layer_before_it():
    """What the norm makes of the layer's output, pulled back, is that output again."""
    analysis, decided, small = shrunk_deep()
    convolutions = [n for n in small.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    goal = goal_of(survivors(analysis, decided), small, convolutions[-1], len(small.graph.nodes))
    norm = small.get_submodule("narrow.1")
    output = noise(3, len(norm.weight), 6, 6)

    assert goal.reached.target is torch.ops.aten.add_.Tensor
    want = F.batch_norm(output, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(goal.heard(output), want)
    torch.testing.assert_close(goal.asked(want, lambda: output), output, rtol=1e-4, atol=1e-4)


def test_a_norm_whose_weight_is_computed_is_no_way_to_a_goal():
    """Scale and shift that are no tensors of the model are not known: the layer keeps its own goal.

    Two residual branches; the second norm's weight is the absolute value of a parameter.
    """
    model = net(
        lambda s, x: s.head(
            (y := x + s.up1(torch.relu(s.down1(x))))
            + F.batch_norm(s.up2(torch.relu(s.down2(y))), s.mean, s.var, s.w.abs(), s.b)
        ),
        head=nn.Linear(12, 3),
        **{f"{way}{block}": nn.Linear(12, 12) for block in "12" for way in ("down", "up")},
    )
    model.w, model.b = nn.Parameter(-noise(12) * 3), nn.Parameter(noise(12))
    model.register_buffer("mean", noise(12))
    model.register_buffer("var", noise(12).abs() + 0.5)
    analysis = analyze(model, (noise(2, 12),))
    decided = removal(analysis, down1__weight=[0, 1, 2, 3, 4])
    small = shrink(analysis, decided)
    left = survivors(analysis, decided)
    layer = [n for n in small.graph.nodes if n.target is torch.ops.aten.linear.default][3]

    goal = goal_of(left, small, layer, len(small.graph.nodes))

    assert goal.reached is layer
    report = refit(analysis, decided, small, [noise(400, 12)])
    assert report.output_error_after < report.output_error_before


def test_the_reference_and_the_samples_stay_as_they_are():
    """The dense model, the calibration samples and the pruned model given are not changed."""
    model = randomised(Deep())
    pruned = edgeprune.prune(model, (image(2),), keep_fraction=0.5)
    samples = image(64, seed=3)
    before = (weights(model), weights(pruned.model), weights(pruned.analysis.captured.module))
    given = samples.clone()

    better = edgeprune.repair(pruned, [samples])

    after = (weights(model), weights(pruned.model), weights(pruned.analysis.captured.module))
    assert all(same(one, two) for one, two in zip(before, after, strict=True))
    assert torch.equal(samples, given)
    assert pruned.repaired is None
    assert better.repaired.kept
    assert better.proof is pruned.proof
    assert not same(weights(better.model), before[1])
    assert not better.model.training
    assert same(weights(better.model), weights(edgeprune.repair(pruned, [samples]).model))


@few
@given(drawn=steps, seed=st.integers(0, 99))
def test_repair_is_never_worse_on_held_out_samples(drawn, seed):
    """Any small net, any removal, random inputs: error after <= error before, and as reported."""
    analysis = analyze(build(drawn), (image(2, size=4),))
    scores = score(analysis, "random", seed=seed)
    decided = plan(analysis, scores, keep_fraction=0.6)
    small = shrink(analysis, decided)
    before = weights(small)
    samples = image(24, size=4, seed=seed)

    report = refit(analysis, decided, small, [samples])

    held = samples[torch.arange(24) % 4 == 1]
    with torch.no_grad():
        want, got = analysis.captured.module(held).double(), small(held).double()
    spread = (want - want.mean(0)).square().sum()
    error = float((got - want).square().sum() / spread)
    assert report.output_error_after <= report.output_error_before
    assert error == pytest.approx(report.output_error_after, rel=1e-3, abs=1e-9)
    assert report.kept or same(before, weights(small))
    for layer in report.layers:
        if layer.error_before is not None:
            assert layer.accepted == (layer.error_after < layer.error_before)


def test_a_repair_that_makes_the_whole_worse_is_undone(monkeypatch):
    """Where every layer reports success but the model's outputs go away, all weights come back.

    The last layer is fooled by hand: it is given the opposite of the dense output as its goal.
    """
    analysis, decided, small = shrunk_deep()
    before = weights(small)
    real = repairing.goal_of

    def fooled(left, module, node, fence):
        goal = real(left, module, node, fence)
        return _Opposite(goal) if node.target is torch.ops.aten.linear.default else goal

    monkeypatch.setattr(repairing, "goal_of", fooled)
    report = refit(analysis, decided, small, [image(64, seed=3)])

    assert not report.kept
    assert "undone" in report.why
    assert report.output_error_after == report.output_error_before
    assert any(layer.accepted for layer in report.layers)
    assert same(before, weights(small))


class _Opposite:
    """A goal that asks for the opposite of what is wanted."""

    def __init__(self, goal) -> None:
        self._goal = goal
        self.reached, self.heard, self.asked = goal.reached, goal.heard, goal.asked

    def wanted(self, left, dense, values):
        return -5.0 * self._goal.wanted(left, dense, values)


def test_a_tied_weight_is_left_alone_and_named():
    """A weight that two places read keeps its value; the layers around it are still refitted."""
    shared = conv(6, 6)
    model = randomised(
        net(
            lambda s, x: s.head(torch.tanh(s.twice(torch.tanh(s.twice(s.stem(x)))))).mean((2, 3)),
            stem=conv(3, 6),
            twice=shared,
            head=conv(6, 4),
        )
    )
    analysis = analyze(model, (image(2),))
    decided = removal(analysis, stem__weight=[0, 1])
    small = shrink(analysis, decided)
    before = small.twice.weight.detach().clone()

    report = refit(analysis, decided, small, [image(128, seed=3)])

    first, second, last = report.layers
    assert first.name == second.name == "twice.weight"
    assert first.why == "left alone: its weight is read at 2 places"
    assert (first.accepted, first.error_before, first.error_after) == (False, None, None)
    assert torch.equal(small.twice.weight, before)
    assert last.name == "head.weight"
    assert last.accepted


def test_nothing_removed_leaves_nothing_to_repair():
    """A plan that removes nothing has no layers to refit, and says so."""
    analysis = analyze(randomised(Deep()), (image(2),))
    decided = plan(analysis, score(analysis), keep_fraction=1.0)
    small = shrink(analysis, decided)
    before = weights(small)

    report = refit(analysis, decided, small, [image(16, seed=3)])

    assert report.layers == ()
    assert report.why.startswith("nothing to repair")
    assert report.output_error_before == report.output_error_after == 0.0
    assert same(before, weights(small))


def test_buffers_and_modes_are_put_back():
    """A model in training mode is fitted in eval mode and given back in training mode."""
    analysis, decided, small = shrunk_deep()
    resting = copy.deepcopy(small)
    small.train()
    before = {name: value.clone() for name, value in small.named_buffers()}
    modes = [m.training for m in small.modules()]

    refit(analysis, decided, resting, [image(64, seed=3)])
    report = refit(analysis, decided, small, [image(64, seed=3)])

    assert report.kept
    assert [m.training for m in small.modules()] == modes
    assert small.training
    assert all(torch.equal(before[name], value) for name, value in small.named_buffers())
    assert same(weights(resting), weights(small))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "repair at samples: expected at least 2, got 1"),
        ({"ridge": -1.0}, "repair at ridge: expected at least 0, got -1.0"),
        ({"ridge": float("nan")}, "repair at ridge: expected at least 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    """A negative ridge or a single sample is a usage error."""
    analysis, decided, small = shrunk_deep()

    with pytest.raises(UsageError, match=message):
        refit(analysis, decided, small, [image(16)], **options)
