"""Tables that forward makes of nothing become tables of the module, which can lose rows."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import net, noise, param
from torch import nn

from edgeprune.graph import constants
from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune

C = 8


def by_elements():
    """An identity kernel as RepVGG writes it."""
    kernel = torch.zeros(C, C, 3, 3)
    for j in range(C):
        kernel[j, j, 1, 1] = 1
    return kernel


def by_index():
    """The same in one indexed write."""
    kernel = torch.zeros(C, C, 3, 3)
    kernel[torch.arange(C), torch.arange(C), 1, 1] = 1
    return kernel


def by_dirac():
    """The same as torch initialises it, over memory that nobody filled."""
    return nn.init.dirac_(torch.empty(C, C, 3, 3))


def by_one_hot():
    """The same from the numbers of its rows."""
    rows = torch.stack([F.one_hot(torch.tensor(j), C) for j in range(C)]).float()
    return F.pad(rows[..., None, None], (1, 1, 1, 1))


def by_padding():
    """The same from a matrix."""
    return F.pad(torch.eye(C)[:, :, None, None], (1, 1, 1, 1))


def like_a_weight(weight):
    """The same with the sizes of a parameter."""
    kernel = torch.zeros_like(weight)
    for j in range(C):
        kernel[j, j, 1, 1] = 1
    return kernel


KERNELS = (by_elements, by_index, by_dirac, by_one_hot, by_padding, like_a_weight)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.__name__)
def test_an_identity_kernel_written_in_forward_loses_its_channels(kernel):
    """RepVGG fused while it runs: w + the identity; a channel is a row and a column of both."""

    def run(m, x, first=1.0, second=1.0):
        identity = kernel(m.w) if kernel is like_a_weight else kernel()
        y = F.conv2d(m.a(x) * first, m.w + identity, padding=1) * second
        return m.b(F.relu(y).mean((2, 3)))

    model = net(run, a=nn.Conv2d(3, C, 1), w=param(C, C, 3, 3), b=nn.Linear(C, 4))
    pruned = prune(model, (noise(2, 3, 5, 5),), keep_fraction=0.5)
    assert pruned.proof.outcome == "proved", pruned.proof.why
    assert set(pruned.model.state_dict()) == set(model.state_dict())

    def mask(parameter, dim):
        found = torch.zeros(C, 1, 1)
        axes = [a for a in pruned.plan.axes if (a.parameter, a.dim) == (parameter, dim)]
        found[list(axes[0].keep)] = 1.0
        return found

    x = noise(3, 3, 5, 5, seed=7)
    expected = model(x, mask("a.weight", 0), mask("w", 0))
    assert torch.allclose(pruned.model(x), expected, atol=1e-4)


def tnet(m, x, mask=None):
    """A transform of the channels that is learned from them, plus the identity (PointNet)."""
    y = m.a(x) if mask is None else m.a(x) * mask
    by = m.f(y.amax(2)).view(-1, 8, 8) + torch.eye(8)
    return m.b(torch.bmm(y.transpose(1, 2), by))


def test_an_identity_beside_a_learned_matrix_loses_rows():
    """A channel of the transformed value is a row of the matrix and of the identity beside it."""
    model = net(tnet, a=nn.Conv1d(3, 8, 1), f=nn.Linear(8, 64), b=nn.Linear(8, 4))
    pruned = prune(model, (noise(2, 3, 9),), keep_fraction=0.5)
    assert pruned.proof.outcome == "proved", pruned.proof.why
    mask = torch.zeros(8, 1)
    mask[next(list(a.keep) for a in pruned.plan.axes if a.parameter == "a.weight")] = 1.0

    x = noise(2, 3, 9, seed=7)
    assert torch.allclose(pruned.model(x), model(x, mask), atol=1e-4)
    slots = pruned.analysis.unit_of("a.weight", 0, 1).slots
    assert ("f.weight", 0, tuple(range(8, 16))) in slots
    assert ("eye_table", 0, (1,)) in slots


def test_an_identity_follows_the_devices_and_dtypes_of_its_model():
    """What the graph created is a table of the module then: it is cast and copied with it."""
    model = net(tnet, a=nn.Conv1d(3, 8, 1), f=nn.Linear(8, 64), b=nn.Linear(8, 4))
    pruned = prune(model, (noise(2, 3, 9),), keep_fraction=0.5)
    x = noise(2, 3, 9)
    wide = copy.deepcopy(pruned.model).double()

    assert wide.eye_table.dtype == torch.float64
    assert torch.allclose(wide(x.double()).float(), pruned.model(x), atol=1e-4)
    assert set(pruned.model.state_dict()) == set(model.state_dict())


def test_an_identity_that_forward_writes_into_is_fresh_at_every_call():
    """What is added to it in place is not there the next time, in the captured or pruned model."""

    def run(m, x):
        by = torch.eye(8)
        by += m.w
        return m.b(m.a(x) @ by)

    model = net(run, a=nn.Linear(4, 8), b=nn.Linear(8, 3), w=param(8, 8))
    pruned = prune(model, (noise(2, 4),), keep_fraction=0.5)
    x = noise(2, 4, seed=7)

    for module, expected in (
        (pruned.analysis.captured.module, model(x)),
        (pruned.model, pruned.model(x)),
    ):
        for _ in range(3):
            assert torch.allclose(module(x), expected, atol=1e-6)


def test_a_large_identity_stays_an_operator():
    """A table is written into every file of the model: one of 2000 x 2000 is not made."""
    model = net(lambda m, x: m.a(x) @ torch.eye(4, 2000) @ torch.eye(2000), a=nn.Linear(4, 4))
    module = analyze(model, (noise(2, 4),)).captured.module

    assert [tuple(buffer.shape) for buffer in module.buffers()] == [(4, 2000)]
    assert sum("eye" in str(node.target) for node in module.graph.nodes) == 2


def _tables(module):
    return [buffer for buffer in module.buffers() if buffer.dim() and buffer.is_floating_point()]


def test_what_data_write_into_is_no_table():
    """Rows that a batch writes between rows of ones: the constant stays operators."""

    def run(m, x):
        made = torch.zeros(C, C)
        made[0] = 1
        made[1] = m.a(x).mean(0)
        return m.b(x @ made + made[0])

    model = net(run, a=nn.Linear(C, C), b=nn.Linear(C, 4))
    module = analyze(model, (noise(2, C),), dynamic_batch=False).captured.module
    assert not _tables(module)
    assert torch.allclose(module(noise(2, C)), model(noise(2, C)), atol=1e-6)


def test_fills_masks_and_numbers_are_no_tables():
    """The same value everywhere, whole numbers, infinities: they have rules of their own."""

    def run(m, x):
        fill = torch.zeros(C)
        fill[:] = 2
        steps = torch.arange(C)
        steps[0] = 3
        mask = torch.zeros(C)
        mask[1] = float("-inf")
        return m.b((m.a(x) * fill + steps).softmax(-1) * mask.exp())

    model = net(run, a=nn.Linear(4, C), b=nn.Linear(C, 3))
    module = analyze(model, (noise(2, 4),)).captured.module
    # What is made of the mask, exp(-inf) at one place of ones, is finite, and differs by place.
    assert [table.tolist() for table in _tables(module)] == [[1.0, 0.0] + [1.0] * (C - 2)]


STEPS = ("write a number", "write a weight", "write through a view", "read", "read a part", "add")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, C - 1)), min_size=1, max_size=7))
def test_a_table_holds_what_the_code_had_made_when_it_was_read(steps):
    """Numbers, weights, views written before, between and after readings: as eager, every time."""

    def run(m, x):
        made, y = torch.eye(C), m.a(x)
        part = made[2:5]
        for step, at in steps:
            match step:
                case "write a number":
                    made[at] = at + 0.5
                case "write a weight":
                    made[at] = m.w
                case "write through a view":
                    part[at % 3] = at
                case "read":
                    y = y @ made
                case "read a part":
                    y = y + part[at % 3] * made[at]
                case "add":
                    made += at
        return m.b(torch.tanh(y))

    model = net(run, a=nn.Linear(4, C), b=nn.Linear(C, 3), w=param(C))
    module = analyze(model, (noise(2, 4),)).captured.module
    for _ in range(2):
        x = noise(3, 4, seed=9)
        assert torch.allclose(module(x), model(x), atol=1e-5)


def test_a_model_with_huge_weights_computes_no_huge_constants(monkeypatch):
    """Past a limit that no weight raises, a constant stays an operator, and what is made of it."""
    monkeypatch.setattr(constants, "_LARGEST", 10)
    monkeypatch.setattr(constants, "_LARGEST_EVER", 100)

    def run(m, x):
        far = (torch.arange(20.0)[:, None] - torch.arange(20.0)).abs()
        return m.b(m.a(x)) + far[0, 1] + m.w[0, 0]

    model = net(run, a=nn.Linear(4, 8), b=nn.Linear(8, 3), w=param(60, 60))
    assert (
        max(table.numel() for table in _tables(analyze(model, (noise(2, 4),)).captured.module))
        == 20
    )

    monkeypatch.setattr(constants, "_COMPUTED", 19)
    module = analyze(model, (noise(2, 4),)).captured.module
    assert len(_tables(module)) == 1


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_frequencies_of_a_number_are_data_for_what_reads_them(shape):
    """A time that becomes sines: no weight makes that width, and the class counts it anew."""

    def run(m, t):
        angles = t[:, None] * (torch.arange(1.0, 5.0) / 3).view(shape)
        return m.b(m.a(torch.cat((angles.sin(), angles.cos()), 1)).relu())

    model = net(run, a=nn.Linear(8, 6), b=nn.Linear(6, 3))
    pruned = prune(model, (torch.tensor([0.3, 1.7]),), keep_fraction=0.5)

    assert pruned.proof.outcome == "proved"
    assert pruned.model.a.weight.shape == (3, 8)
    pin = next(p for p in pruned.analysis.pins if (p.parameter, p.dim) == ("a.weight", 1))
    assert "fixed numbers of the model" in pin.reason


def test_a_table_takes_no_name_of_the_users():
    """A tensor of the user's may be called as the table would be."""
    model = net(
        lambda m, x: m.b(m.a(x) * m.arange_table + torch.arange(1.0, 9.0)),
        a=nn.Linear(4, 8),
        b=nn.Linear(8, 3),
        arange_table=param(8),
    )
    pruned = prune(model, (noise(2, 4),), keep_fraction=0.5)

    assert pruned.proof.outcome == "proved"
    assert pruned.model.tables == ("arange_table_",)
    assert pruned.model.arange_table.shape == (4,)
