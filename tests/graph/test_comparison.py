"""What capture compares with eager, and at which batch sizes."""

from __future__ import annotations

import pytest
import torch
from small_nets import conv, image, net, noise
from torch import nn

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.capture import capture
from edgeprune.graph.comparison import relative_error
from edgeprune.graph.inputs import Inputs, vary, vary_but_first
from edgeprune.graph.observe import TensorFact, observe


def shapely():
    """Sizes that are fixed, that follow from the batch, and results in a tuple."""

    def run(m, x):
        one, two = torch.relu(m.n(m.a(x))).chunk(2, 1)
        return m.h((one + two).flatten(2).mean(2).reshape(x.shape[0] * 2, 2).reshape(-1, 4))

    return net(run, a=conv(3, 8), n=nn.BatchNorm2d(8), h=nn.Linear(4, 5))


def test_facts_are_those_of_a_run_at_the_inputs_of_the_capture():
    """The run that is compared with eager gives every node the shape and dtype at the inputs."""
    captured = capture(shapely(), (image(),))
    _, run = observe(captured.module, captured.args, dict(captured.kwargs))
    assert captured.dynamic_batch
    assert dict(captured.facts) == dict(run)


def test_facts_that_follow_values_are_those_of_the_example():
    """A size that depends on values is the example's, not that of the other values compared."""

    def run(m, x):
        return m.a(x)[:, x[0].gt(0).nonzero().reshape(-1)]

    x = torch.tensor([[3.0, -1.0, -1.0, -1.0], [1.0, 2.0, 1.0, 2.0]])
    captured = capture(net(run, a=nn.Linear(4, 4)), (x,))
    _, seen = observe(captured.module, captured.args, dict(captured.kwargs))
    assert dict(captured.facts) == dict(seen)
    output = next(iter(captured.module.graph.output_node().all_input_nodes))
    assert captured.facts[output.name] == TensorFact((2, 1), torch.float32)


def test_the_batch_that_is_compared_is_not_the_one_that_is_traced():
    """What export bakes in is right for the batch it saw alone: another one is compared."""
    sizes = {True: set(), False: set()}

    def run(m, x):
        size = x.shape[0]
        traced = isinstance(size, torch.SymInt)
        sizes[traced].add(size.node.hint if traced else size)
        return m.a(x)

    for example, traced, compared in ((1, 3, 2), (2, 3, 2), (5, 6, 5)):
        sizes = {True: set(), False: set()}
        captured = capture(net(run, a=nn.Linear(4, 4)), (torch.randn(example, 4),))
        assert captured.inputs.batch_size == compared
        assert sizes == {True: {traced}, False: {compared}}


def test_a_batch_that_export_must_fix_is_the_examples_own():
    """A model that fixes its batch size is captured with the size it was shown, and says so."""

    def run(m, x):
        return m.a(x).reshape(int(x.shape[0]), -1)

    def pairs(m, x):
        if x.shape[0] % 2:
            raise ValueError("in pairs")
        return m.a(x)

    for forward, size in ((run, 1), (run, 2), (pairs, 2), (pairs, 4)):
        captured = capture(net(forward, a=nn.Linear(4, 4)), (torch.randn(size, 4),))
        assert not captured.dynamic_batch
        assert captured.inputs.batch_size == size
        assert any("fixes its batch size" in note for note in captured.lost)


def test_a_value_of_the_example_that_is_baked_in_is_found_at_another_batch():
    """A number read off the example is right for it alone: other samples tell."""

    def run(m, x):
        return m.a(x) * (1.0 + len(str(float(x.detach().sum()))))

    def baked(m, x):
        found = [t for t in (x,) if not torch.compiler.is_exporting()]
        return m.a(x) * (2.0 if found else 3.0)

    with pytest.raises(ModelNotSupported):
        capture(net(run, a=conv(3, 4)), (image(),))
    with pytest.raises(ModelNotSupported, match="batch 2"):
        capture(net(baked, a=conv(3, 4)), (image(),))


def test_the_first_sample_stays_and_the_others_vary():
    """Row 0 of each batched tensor is the example's; rows differ; what is not batched varies."""
    x, scale = torch.ones(3, 4) + torch.arange(4.0), torch.arange(5.0)
    varied = vary_but_first(Inputs(args=(x,), kwargs={"scale": scale}), seed=1)
    new = varied.args[0]
    assert torch.equal(new[0], x[0])
    assert not torch.equal(new[1], x[1])
    assert not torch.equal(new[1], new[2])
    assert not torch.equal(varied.kwargs["scale"], scale)


def test_other_integers_are_the_samples_own_in_another_order():
    """A token that every sample has once stays one a sample; a vector of the batch is mixed."""
    ids = torch.tensor([[5, 6, 7, 2], [8, 9, 4, 2], [1, 3, 0, 2]])
    varied = vary(Inputs(args=(ids, torch.arange(3)), kwargs={}), seed=1)

    assert torch.equal(varied.args[0].sort(1).values, ids.sort(1).values)
    assert not torch.equal(varied.args[0], ids)
    assert sorted(varied.args[1].tolist()) == [0, 1, 2]


def test_masks_stay_masks_and_starts_of_bags_rise():
    """Zeros and ones change places; integers that rise from 0 are where something begins."""
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 1]])
    starts = torch.tensor([0, 2, 2, 5])
    whole, image = torch.ones(3, 4), torch.ones(3, 2, 4, 4)
    varied = vary(Inputs(args=(mask, starts, whole, image), kwargs={}), seed=2)

    assert torch.equal(varied.args[0].sum(1), mask.sum(1))
    assert not torch.equal(varied.args[0], mask)
    assert torch.equal(varied.args[1], starts)
    assert torch.equal(varied.args[2], whole)
    assert not torch.equal(varied.args[3], image)
    assert not torch.equal(vary(Inputs(args=(whole,), kwargs={}), seed=2).args[0], whole)


def test_a_masked_score_of_minus_infinity_is_compared():
    """What is not finite must be so in the graph too; the rest is compared as ever."""
    model = net(lambda m, x: m.a(x).masked_fill(x > 0, -torch.inf), a=nn.Linear(4, 4))

    assert capture(model, (noise(3, 4),)).dynamic_batch
    assert relative_error(torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, 2.0])) == torch.inf


def test_the_numbers_of_a_row_stay_together():
    """The corners of a box are in order; boxes of a sample change places."""
    low = torch.arange(12).reshape(2, 6, 1)
    boxes = torch.cat([low, low + 100], 2)
    varied = vary(Inputs(args=(boxes,), kwargs={}), seed=1).args[0]

    assert torch.equal(varied[..., 1] - varied[..., 0], torch.full((2, 6), 100))
    assert torch.equal(varied[..., 0].sort(1).values, boxes[..., 0])
    assert not torch.equal(varied, boxes)


def test_values_that_a_model_does_not_take_are_said():
    """A model that takes its example's order only is not shown another; the error says what was."""

    def run(m, x, i):
        if not torch.compiler.is_exporting() and bool((i.diff(dim=1) < 0).any()):
            raise ValueError("unsorted")
        return m.a(x) + i.float()

    with pytest.raises(ModelNotSupported, match="other values of the kind .* ValueError: unsorted"):
        capture(net(run, a=nn.Linear(4, 4)), (torch.randn(2, 4), torch.arange(8).reshape(2, 4)))
