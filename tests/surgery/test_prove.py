"""The proof: it holds on healthy nets, fails on broken ones, and never says more than it knows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_nets import between, conv, image, net, noise, randomised
from torch import nn

from edgeprune.errors import InternalError, ModelNotSupported, PlanError, ProofFailed
from edgeprune.graph.analysis import analyze
from edgeprune.graph.module import set_tensor
from edgeprune.planning.plan import plan as make
from edgeprune.scoring.scores import Scores, score
from edgeprune.surgery.prove import prove
from edgeprune.surgery.prune import prune
from edgeprune.surgery.shrink import shrink
from edgeprune.surgery.silence import samples


def healthy():
    """Two widths, a norm, a mean over channels and a grouped convolution."""

    def run(m, x):
        y = torch.tanh(m.n(m.a(x)))
        y = y - y.mean(1, keepdim=True)
        return m.h(torch.tanh(m.g(y)).mean((2, 3)))

    return net(
        run,
        a=conv(3, 8),
        n=nn.BatchNorm2d(8),
        g=conv(8, 8, groups=4),
        h=nn.Linear(8, 4),
    )


@pytest.fixture(scope="module")
def pruned():
    """The healthy net at half."""
    return prune(healthy(), (image(),))


def test_a_healthy_net_is_proved(pruned):
    """Agrees to rounding, really changed, and every sabotaged comparison was told apart."""
    proof = pruned.proof

    assert proof.outcome == "proved"
    assert proof.error <= proof.tolerance
    assert proof.change > 0.01
    assert all(attempt.detected for attempt in proof.sabotages)
    assert {attempt.kind for attempt in proof.sabotages} == {
        "kept unit silenced",
        "removed unit left loud",
        "index swapped in one slot",
    }
    assert proof.require() is proof


def swapped(module, name, dim=0):
    """The tensor `name` with its first two positions along `dim` exchanged."""
    tensor = (
        module.get_parameter(name).detach() if "running" not in name else (module.get_buffer(name))
    )
    order = [1, 0, *range(2, tensor.shape[dim])]
    set_tensor(module, name, tensor.index_select(dim, torch.tensor(order)))


@pytest.mark.parametrize(
    "name", ["a.weight", "a.bias", "n.running_mean", "n.weight", "g.weight", "g.bias"]
)
def test_two_indices_swapped_in_one_tensor_fail(pruned, name):
    """The smallest possible slip in one tensor of the shrunk model is found."""
    broken = copy.deepcopy(pruned.model)
    swapped(broken, name)

    assert prove(pruned.analysis, pruned.plan, broken).outcome == "failed"


def edited(module, op, position, value):
    """The shrunk graph with one argument of the first node that calls `op` changed."""
    broken = copy.deepcopy(module)
    node = next(n for n in broken.graph.nodes if n.target is op)
    node.update_arg(position, value)
    broken.recompile()
    return broken


def test_a_missing_mean_factor_fails_and_names_the_node(pruned):
    """Without the factor 4 / 8 the mean is that of 4: the first wrong node and line are named."""
    broken = edited(pruned.model, torch.ops.aten.mul.Scalar, 1, 1.0)
    proof = prove(pruned.analysis, pruned.plan, broken)

    with pytest.raises(ProofFailed, match=r"proof at \w+ \(aten\..+\.py:\d+") as caught:
        proof.require()
    assert caught.value.exit_code == 70
    assert "bug of edgeprune" in str(caught.value)


def test_wrong_groups_fail():
    """A grouped convolution with half the groups it should have: it runs, and is refused."""
    model = net(
        lambda m, x: m.c(torch.tanh(m.b(m.a(x)))),
        a=conv(3, 8),
        b=conv(8, 8, groups=8),
        c=conv(8, 4),
    )
    pruned = prune(model, (image(),))
    broken = copy.deepcopy(pruned.model)
    node = [n for n in broken.graph.nodes if "conv2d" in str(n.target)][1]
    node.update_arg(6, 2)
    broken.b.weight = nn.Parameter(broken.b.weight.detach().repeat(1, 2, 1, 1))
    broken.recompile()

    assert prove(pruned.analysis, pruned.plan, broken).outcome == "failed"


def test_the_scale_of_attention_is_the_dense_one():
    """One head at half its width: recomputing the scale from the new width fails the proof."""
    model = net(
        lambda m, x: m.o(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))),
        q=nn.Linear(6, 8),
        k=nn.Linear(6, 8),
        v=nn.Linear(6, 8),
        o=nn.Linear(8, 3),
    )
    pruned = prune(model, (noise(2, 5, 6),))
    broken = copy.deepcopy(pruned.model)
    node = next(n for n in broken.graph.nodes if "dot_product" in str(n.target))
    assert node.kwargs["scale"] == pytest.approx(8**-0.5)
    node.kwargs = {}
    broken.recompile()

    assert prove(pruned.analysis, pruned.plan, broken).outcome == "failed"


def test_another_models_weights_fail(pruned):
    """The right graph with other weights is not the model."""
    broken = randomised(copy.deepcopy(pruned.model), seed=3)

    assert prove(pruned.analysis, pruned.plan, broken).outcome == "failed"


def test_a_wrong_output_shape_fails(pruned):
    """A model of another shape is infinitely far."""
    proof = prove(pruned.analysis, pruned.plan, nn.Sequential(nn.Flatten(), nn.Linear(108, 5)))

    assert proof.outcome == "failed"
    assert proof.error == float("inf")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_proof_is_reproducible(pruned, seed):
    """The same seed gives the same numbers."""
    one = prove(pruned.analysis, pruned.plan, pruned.model, seed=seed)

    assert one == prove(pruned.analysis, pruned.plan, pruned.model, seed=seed)


def test_a_constant_output_proves_nothing():
    """A head of zeros: 0 = 0 is refused, with what to do."""
    model = healthy()
    nn.init.zeros_(model.h.weight)
    nn.init.zeros_(model.h.bias)

    with pytest.raises(ModelNotSupported, match="got constant ones"):
        prune(model, (image(),))


def test_a_single_number_varies_from_input_to_input():
    """A loss has no spread of its own: it is proved by its size, on inputs that move it."""
    model = net(
        lambda m, x: m.b(m.a(x).tanh()).square().mean(), a=nn.Linear(8, 6), b=nn.Linear(6, 4)
    )

    pruned = prune(model, (noise(3, 8),))

    assert pruned.proof.outcome == "proved"
    assert pruned.model.a.weight.shape == (3, 8)


def test_whole_numbers_alone_prove_nothing():
    """The place of the largest score may stay while the scores are wrong: scores are asked for."""
    model = net(lambda m, x: m.b(m.a(x)).argmax(1), a=nn.Linear(8, 6), b=nn.Linear(6, 4))

    with pytest.raises(ModelNotSupported, match="no floating-point output"):
        prune(model, (noise(3, 8),))


def test_an_output_that_is_not_finite_proves_nothing():
    """NaN equals nothing, so nothing is claimed."""
    model = net(lambda m, x: m.b(m.a(x)) / 0, a=nn.Linear(8, 6), b=nn.Linear(6, 4))

    with pytest.raises((ModelNotSupported, InternalError)):
        prune(model, (noise(2, 8),))


def test_nothing_removed_is_not_a_proof():
    """keep_fraction 1 leaves the model whole, and says so."""
    pruned = prune(healthy(), (image(),), keep_fraction=1.0)

    assert pruned.proof.outcome == "nothing removed"
    assert not pruned.proof.holds
    assert pruned.plan.axes == ()


def test_dead_units_are_no_change():
    """Only units that nobody hears go: the output is the dense one, and that is said."""
    model = between(lambda y: y[:, 4:], 8, 4)
    analysis = analyze(model, (image(),))
    scores = score(analysis, "random")
    dead = next(g.name for g in analysis.groups if all(t.parameter != "b.weight" for t in g.tables))
    index = [g.name for g in analysis.groups].index(dead)
    decided = make(analysis, scores, keep_fraction=0.5)
    other = analysis.groups[1 - index].name

    from edgeprune.planning.allocate import Request
    from edgeprune.planning.plan import make_plan
    from edgeprune.surgery.survivors import removed_units

    removed = removed_units(analysis, decided)
    removed[other][:] = False
    only_dead = make_plan(analysis, removed, Request(), "random")
    proof = prove(analysis, only_dead, shrink(analysis, only_dead))
    assert proof.outcome == "no change"
    assert proof.change == 0.0


@pytest.mark.parametrize("faintly", [8e-10, 1e-14, 0.0])
def test_a_group_that_outputs_hardly_hear_is_named_and_others_tried(faintly):
    """A branch that adds next to nothing tells no sabotage; by itself it proves nothing."""

    def run(m, x):
        return m.b(m.a(x).tanh()) + m.d(m.c(x).tanh()) * faintly

    with torch.random.fork_rng():
        torch.manual_seed(0)  # at 8e-10 all units of c pass the margin, one alone does not
        layers = {
            "a": nn.Linear(6, 8),
            "b": nn.Linear(8, 4),
            "c": nn.Linear(6, 8),
            "d": nn.Linear(8, 4),
        }
        model = net(run, **layers)
    both = prune(model, (noise(3, 6),))
    alone = prune(model, (noise(3, 6),), only=("c.weight",))

    assert both.proof.outcome == "proved"
    assert both.proof.why.endswith("heard too faintly to tell: c.weight")
    assert alone.proof.outcome == "no change"
    assert not alone.proof.holds


def test_nothing_to_remove_is_said_with_the_pins():
    """A model whose every width is pinned: the reasons stand in the error."""
    model = net(lambda m, x: m.a(x).cumprod(-1), a=nn.Linear(8, 6))

    with pytest.raises(PlanError, match="aten.cumprod.default has no rule"):
        prune(model, (noise(2, 8),))


def test_half_precision_inside_is_judged_in_float32():
    """A cast to float16 inside: float64 cannot resolve it, the float32 scale can."""
    model = net(
        lambda m, x: m.b(m.a(x).half().relu().float()), a=nn.Linear(8, 64), b=nn.Linear(64, 4)
    )

    assert prune(model, (noise(4, 8),)).proof.holds


def test_one_number_a_sample_is_judged_on_enough_samples():
    """A regression's (B,) output has a spread in the proof and in every sabotage: errors finite."""
    model = net(lambda m, x: m.b(torch.tanh(m.a(x)))[:, 0], a=nn.Linear(8, 16), b=nn.Linear(16, 1))
    proof = prune(model, (noise(2, 8),)).proof

    assert proof.outcome == "proved"
    assert all(0 < attempt.error < 1e6 for attempt in proof.sabotages)


def test_a_single_number_beside_the_output_is_measured_by_its_size():
    """A 0-dim output, equal but for rounding, does not fail a proof that holds."""
    model = net(
        lambda m, x: (m.b(torch.tanh(m.a(x))), torch.tanh(m.a(x)).square().sum()),
        a=nn.Linear(8, 16),
        b=nn.Linear(16, 5),
    )
    proof = prune(model, (noise(2, 8),)).proof

    assert proof.outcome == "proved"
    assert proof.precision == "float32"


def test_a_swap_in_a_shared_layer_is_heard_under_each_of_its_names():
    """One unit kept, one try: the swapped weight reaches the graph by whatever name it reads."""

    class Block(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)

    shared = conv(3, 4)
    model = net(
        lambda m, x: m.b(torch.tanh(m.block(x))),
        shared=shared,
        block=Block(shared),
        b=conv(4, 4),
    )

    assert prune(model, (image(),), keep_fraction=0.25).proof.outcome == "proved"


def test_an_output_of_integers_is_compared_and_counted():
    """(scores, their argmax): equal integers are no error, unequal ones a finite number."""
    model = net(
        lambda m, x: (lambda y: (y, y.argmax(1)))(m.b(m.a(x).relu())),
        a=nn.Linear(8, 16),
        b=nn.Linear(16, 5),
    )
    proof = prune(model, (noise(6, 8),), keep_fraction=0.25).proof

    assert proof.outcome == "proved", proof.why
    assert 0 < proof.change < float("inf")
    assert all(trial.error < float("inf") for trial in proof.sabotages)


def test_a_live_unit_is_found_among_dead_ones():
    """One removed unit of 200 and one kept one of 100 are heard: the proof finds both."""
    model = net(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(6, 300), b=nn.Linear(300, 5))
    kept, gone = 123, 45
    with torch.no_grad():
        model.a.bias.fill_(-100.0)
        model.a.bias[[kept, gone]] = 4.0
    analysis = analyze(model, (noise(2, 6),))
    values = np.linspace(1.0, 2.0, 300)
    values[[kept, gone]] = 3.0, 0.0
    decided = make(analysis, Scores("l2", {"a.weight": values}), keep_fraction=1 / 3)

    proof = prove(analysis, decided, shrink(analysis, decided))

    assert proof.outcome == "proved", proof.why


class GroupASample(nn.Module):
    """A convolution modulated by each sample, as a grouped one with the batch merged into channels
    (Karras et al. 2020, arXiv 1912.04958)."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.a, self.style, self.b = conv(3, 8), nn.Linear(6, 8), conv(6, 4)
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3) / 8)

    def forward(self, x, w):
        y, count = self.a(x), x.shape[0]
        weight = self.weight * self.style(w)[:, None, :, None, None]
        if self.last:
            # Channels outside, samples inside: a row of every sample for each channel.
            merged = y.transpose(0, 1).reshape(8 * count, *y.shape[2:])
            y = merged.reshape(8, count, *y.shape[2:]).transpose(0, 1)
        merged = y.reshape(1, count * y.shape[1], *y.shape[2:])
        z = F.conv2d(merged, weight.flatten(0, 1), padding=1, groups=count)
        return self.b(torch.tanh(z.reshape(count, 6, *z.shape[2:])))


@pytest.mark.parametrize("last", [False, True])
def test_a_batch_that_is_merged_with_channels_is_proved_at_other_sizes_too(last):
    """The labels of the captured two samples are those of three, and of one."""
    model = randomised(GroupASample(last)).eval()

    found = prune(model, (image(), noise(2, 6)))

    assert found.analysis.captured.dynamic_batch
    assert found.proof.outcome == "proved"
    assert {group.name for group in found.analysis.groups} >= {"a.weight", "weight"}


@pytest.mark.parametrize(
    ("labels", "size", "expected"),
    [
        ([1, 2, 3, 1, 2, 3], 9, [0, 1, 2] * 3),
        ([1, 1, 2, 2, 3, 3], 3, [0, 2, 4]),
        ([1, 1, 2, 2, 3, 3], 9, [0, 0, 0, 2, 2, 2, 4, 4, 4]),
        ([1, 2, 1, 2, 3, 4, 3, 4], 12, [0, 1] * 3 + [4, 5] * 3),
    ],
)
def test_the_labels_of_another_batch(labels, size, expected):
    """Two captured samples, outside, inside or between the labels, as one or three."""
    assert samples(torch.tensor(labels), 2, size).tolist() == expected


def test_labels_that_differ_from_sample_to_sample_have_no_other_batch():
    """Nothing is guessed: it is a fault, and said."""
    with pytest.raises(InternalError, match="2 samples"):
        samples(torch.tensor([1, 2, 3, 4]), 2, 6)
