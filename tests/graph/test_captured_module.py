"""The captured and the shrunk model behave as an nn.Module of the user's."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from small_nets import conv, image, net, noise, randomised, require_equal
from torch import nn

from edgeprune.graph.capture import capture
from edgeprune.graph.module import CapturedModule
from edgeprune.surgery.prune import prune


class Classifier(nn.Module):
    """Convolution, BatchNorm, dropout, a tied pair, a frozen weight and a hidden buffer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8))
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 4)
        self.head.bias.requires_grad_(False)
        self.register_buffer("shift", torch.linspace(0, 1, 8), persistent=False)

    def forward(self, x):
        y = self.norm(self.features(x)).mean((2, 3)) + self.shift
        return self.head(self.drop(self.two(torch.tanh(self.one(y)))))


@pytest.fixture
def model():
    """Trained-looking weights, in training mode, with a hook of the user's."""
    return randomised(Classifier()).train()


@pytest.fixture(params=["captured", "shrunk"])
def module(request, model) -> CapturedModule:
    """The captured graph of the model, and what prune makes of it."""
    if request.param == "captured":
        return capture(model, (image(),)).module
    return prune(model, (image(),)).model


def test_names_and_grads_are_the_users(module, model):
    """State dict keys, parameter names and requires_grad as in the original."""
    assert list(module.state_dict()) == list(model.state_dict())
    for (name, ours), (expected, theirs) in zip(
        module.named_parameters(remove_duplicate=False),
        model.named_parameters(remove_duplicate=False),
        strict=True,
    ):
        assert (name, ours.requires_grad) == (expected, theirs.requires_grad)


def test_ties_are_kept(module):
    """Two names, one tensor: before and after a deep copy."""
    assert module.one.weight is module.two.weight
    twin = copy.deepcopy(module)
    assert twin.one.weight is twin.two.weight
    assert twin.one.weight is not module.one.weight


def test_hidden_buffers_stay_hidden(module):
    """A non-persistent buffer is a buffer, but not in the state dict, nor in a copy's."""
    for each in (module, copy.deepcopy(module)):
        assert "shift" in dict(each.named_buffers())
        assert "shift" not in each.state_dict()


def test_copies_and_state_dicts_round_trip(module):
    """A deep copy gives the same output; other weights and back again too."""
    x = image(3)
    expected = module(x)
    twin = copy.deepcopy(module)
    assert twin(x).equal(expected)

    state = {name: value.clone() for name, value in module.state_dict().items()}
    randomised(twin, seed=7)
    assert not twin(x).equal(expected)
    twin.load_state_dict(state)
    assert twin(x).equal(expected)


def test_it_is_pickled_whole(module, tmp_path):
    """torch.save keeps graph, modes, ties and frozen weights; what comes back is pruned again."""
    torch.save(module, tmp_path / "model.pt")
    twin = torch.load(tmp_path / "model.pt", weights_only=False)
    x = image(3)

    assert isinstance(twin, CapturedModule)
    assert twin(x).equal(module(x))
    assert list(twin.state_dict()) == list(module.state_dict())
    assert twin.one.weight is twin.two.weight
    assert [p.requires_grad for p in twin.parameters()] == [
        p.requires_grad for p in module.parameters()
    ]
    before = twin.norm.running_mean.clone()
    twin.train()(x)
    assert not twin.norm.running_mean.equal(before)
    assert prune(twin.eval(), (image(),)).proof.outcome == "proved"


OWN = """
import sys
from dataclasses import dataclass

import torch
from torch import nn

import edgeprune


@torch.library.custom_op("test_captured_module::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_fake(torch.empty_like)


@dataclass
class Both:
    y: torch.Tensor
    twice: torch.Tensor


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.b(self.a(x).relu())
        return {"both": Both(y, twice(y))}
"""
WRITES = """
from own import *
pruned = edgeprune.prune(Own().eval(), (torch.randn(2, 4),), criterion="random")
x = torch.randn(3, 4)
torch.save((pruned.model, x, pruned.model(x)["both"].twice), "model.pt")
"""
READS = """
from own import *
model, x, expected = torch.load("model.pt", weights_only=False)
both = model(x)["both"]
print(type(both).__name__, torch.equal(both.twice, expected))
"""


def test_a_pickle_holds_classes_and_operators_of_the_users(tmp_path):
    """In another process that imports them: a dataclass comes out, the own operator runs."""
    (tmp_path / "own.py").write_text(OWN)
    for code, said in ((WRITES, ""), (READS, "Both True\n")):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == said


def test_batch_sizes(module):
    """1, 2 and 5 samples; each sample by itself gives what it gives in a batch."""
    x = image(5)
    whole = module(x)
    assert module(x[:2]).shape == (2, 4)
    require_equal(torch.cat([module(sample) for sample in x.split(1)]), whole)


def test_batch_norm_statistics_move_in_training_only(module):
    """train(): running mean and count move as torch moves them; eval(): they rest."""
    mean = module.norm.running_mean.clone()
    module.eval()(image(4))
    assert module.norm.running_mean.equal(mean)
    module.train()(image(4))
    assert not module.norm.running_mean.equal(mean)
    assert module.training
    assert not module.eval().training


def test_training_equals_the_users_training(model):
    """The captured graph in train() without dropout is the eager model in train()."""
    model.drop.p = 0.0
    module = capture(model, (image(),)).module.train()
    x = image(4)

    # Modes are read from the graph's own modules: dropout of probability 0 was captured.
    require_equal(module(x), model.train()(x))
    require_equal(module.norm.running_mean, model.norm.running_mean)
    require_equal(module.features.get_submodule("1").running_var, model.features[1].running_var)


def test_a_frozen_part_stays_frozen(module):
    """features.eval() in training: its statistics rest, those behind it move."""
    module.train()
    module.features.eval()
    frozen = module.features.get_submodule("1").running_mean.clone()
    free = module.norm.running_mean.clone()
    module(image(4))

    assert module.features.get_submodule("1").running_mean.equal(frozen)
    assert not module.norm.running_mean.equal(free)


def test_dropout_is_active_in_training_only(module):
    """Two passes differ in train() with frozen norms, and agree in eval()."""
    x = image(4)
    assert module.eval()(x).equal(module(x))
    module.train()
    module.features.eval()
    module.norm.eval()
    assert not module(x).equal(module(x))


def test_gradients_reach_every_parameter_that_wants_them(module):
    """One step of SGD: each parameter with requires_grad moves, the frozen bias does not."""
    module.train()
    module.drop.eval()
    before = {name: value.clone() for name, value in module.named_parameters()}
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module(image(8)).square().mean().backward()
    optimiser.step()

    moved = {n for n, value in module.named_parameters() if not value.equal(before[n])}
    # A bias right before a BatchNorm has gradient zero up to rounding.
    expected = {n for n, p in module.named_parameters() if p.requires_grad}
    assert expected - {"features.0.bias", "features.3.bias"} <= moved
    assert "head.bias" not in moved


def test_the_users_model_is_unchanged(model):
    """Weights, statistics, modes of every part, gradients and hooks are as before."""
    model.features.eval()
    calls = []
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    tensors = [id(parameter) for parameter in model.parameters()]

    small = prune(model, (image(),)).model
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()

    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [id(parameter) for parameter in model.parameters()] == tensors
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(model.head._forward_hooks) == 1
    handle.remove()


def test_pruned_again(module):
    """A captured or shrunk model is accepted by prune, and shrinks."""
    again = prune(module, (image(),), keep_fraction=0.75)

    assert again.proof.holds
    assert (
        again.model.features.get_submodule("0").weight.shape[0]
        < (module.features.get_submodule("0").weight.shape[0])
    )
    assert again.model(image(5)).shape == (5, 4)


def test_moved_and_cast(module):
    """.double() and .to() reach constants and buffers alike."""
    assert module.double()(image(2).double()).dtype == torch.float64
    assert module.to(torch.float32)(image(2)).dtype == torch.float32


def test_a_batch_of_one_is_grown():
    """An example of one sample: export would bake the 1, so it is repeated to 2."""
    captured = capture(net(lambda m, x: m.a(x), a=nn.Linear(4, 3)), (noise(1, 4),))

    assert captured.dynamic_batch
    assert captured.module(noise(7, 4)).shape == (7, 3)


def test_what_eval_mode_loses_is_listed():
    """A layer that only works in training leaves no node: it is named."""
    model = net(
        lambda m, x: m.aux(m.a(x)) if m.training else m.a(x),
        a=nn.Linear(4, 3),
        aux=nn.Sequential(nn.Linear(3, 3)),
    )

    assert any(note.startswith("aux.0 (Linear)") for note in capture(model, (noise(2, 4),)).lost)


class Cached(nn.Module):
    """A table in a buffer that the first forward puts in place of a smaller one (ConViT)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 4)
        self.register_buffer("table", torch.zeros(1, 1), persistent=False)

    def forward(self, x):
        if self.table.shape[0] != x.shape[1]:
            self.table = torch.arange(x.shape[1]).float()[:, None] / x.shape[1]
        return self.b(self.a(x) * self.table)


def test_a_buffer_that_forward_replaces_is_captured_and_put_back():
    """The cache of one run is not the start of the next, and the user's model keeps what it had."""
    model = Cached().eval()

    pruned = prune(model, (torch.randn(2, 5, 8),))

    assert pruned.proof.outcome == "proved"
    assert torch.equal(model.table, torch.zeros(1, 1))


class NarrowValues(nn.Module):
    """Attention of which only the values can go: its head dims differ after surgery."""

    def __init__(self, *, in_place: bool):
        super().__init__()
        self.value, self.out = nn.Linear(32, 32), nn.Linear(32, 7)
        self.in_place = in_place

    def forward(self, x):
        batch, tokens, _ = x.shape
        both = (x, self.value(x))
        asked, given = (y.view(batch, tokens, 2, 16).transpose(1, 2) for y in both)
        mixed = nn.functional.scaled_dot_product_attention(asked, asked, given)
        y = mixed.transpose(1, 2).contiguous().view(batch, tokens, -1)
        return self.out(nn.functional.relu(y, inplace=self.in_place))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_view_that_another_kernel_forbids_copies(in_place: bool) -> None:
    """torch.export drops `contiguous()` where its kernel's result needs none; others' results do.

    Attention whose values have a narrower head dim than its queries comes in another order. A
    write behind the view may go into the copy, as nothing else reads what attention gave.
    """
    pruned = prune(randomised(NarrowValues(in_place=in_place)), (noise(2, 5, 32),))

    assert pruned.model.get_parameter("value.weight").shape == (16, 32)
    assert pruned.proof.outcome == "proved"
    assert pruned.model(noise(3, 5, 32)).shape == (3, 5, 7)


def test_a_view_that_is_written_through_stays_one() -> None:
    """A copy would lose the write."""
    model = net(lambda m, x: _doubled(m.a(x)), a=nn.Linear(8, 8))
    x = noise(2, 8)
    captured = capture(model, (x,)).module

    assert any(node.target is torch.ops.aten.view.default for node in captured.graph.nodes)
    require_equal(captured(x), model(x))


def _doubled(y: torch.Tensor) -> torch.Tensor:
    y.view(-1, 2, 4)[:, 0].mul_(2.0)
    return y
