"""Buffers that forward fills or counts up: the graph does as eager, the user's model stays."""

from __future__ import annotations

import pytest
import torch
from small_nets import image, net, noise
from torch import nn

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.capture import capture
from edgeprune.surgery.prune import prune


class Caching(nn.Module):
    """A table that forward makes once, in one of the ways that people write it."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.a, self.norm, self.b = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.register_buffer("nothing", None)
        self.register_buffer("table", None, persistent=False)
        self.register_buffer("shift", torch.linspace(-1, 1, 16))
        self.kept = {}

    def made(self, width):
        """The table, by `way`."""
        match self.way:
            case "a buffer":
                if self.table is None:
                    self.table = torch.linspace(0.5, 1.5, width)
                return self.table
            case "a registered buffer":
                if self.table is None:
                    self.register_buffer("table", torch.linspace(0.5, 1.5, width), persistent=False)
                return self.table
            case "a dict":
                return self.kept.setdefault(width, torch.linspace(0.5, 1.5, width))
        return torch.linspace(0.5, 1.5, width)

    def forward(self, x):
        y = self.norm(self.a(x)).relu()
        return self.b(y * self.made(y.shape[1]) + self.shift)


@pytest.mark.parametrize("way", ["a buffer", "a registered buffer", "a dict", "nothing kept"])
def test_a_table_that_forward_keeps_goes_nowhere_else(way):
    """Widths go, every call gives what eager gives; no other buffer and no input is written.

    torch.export numbers buffers by those that are None too, and copies the table into another one.
    """
    model = Caching(way).eval()
    x = noise(3, 4)
    given = x.clone()
    pruned = prune(model, (x,), keep_fraction=0.5)

    assert pruned.proof.outcome == "proved"
    assert pruned.model.get_parameter("a.weight").shape == (8, 4)
    assert model.table is None
    dense = pruned.analysis.captured.module
    expected = Caching(way).eval()
    expected.load_state_dict(model.state_dict())
    for _ in range(3):
        assert torch.allclose(dense(x), expected(x), atol=1e-5)
    assert torch.equal(x, given)
    for name, made in Caching(way).named_buffers():
        assert torch.equal(model.get_buffer(name), made)


class Counting(nn.Module):
    """A state that every call moves, by another tensor in its place or in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("nothing", None)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("last", torch.zeros(8))
        self.register_buffer("sums", torch.zeros(8))

    def forward(self, y):
        before, self.steps = self.steps, self.steps + 1
        shown = self.last
        self.last = y.mean(0)
        self.sums += y.mean(0)
        return y * self.steps + before + shown + self.sums


class Stateful(nn.Module):
    """A state in a submodule, between two layers."""

    def __init__(self, state):
        super().__init__()
        self.a, self.state, self.b = nn.Linear(4, 8), state, nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.state(self.a(x).relu()))


class Outermost(Counting):
    """The same state in the outermost module."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(super().forward(self.a(x).relu()))


@pytest.mark.parametrize(
    ("make", "path"), [(lambda: Stateful(Counting()), "state."), (Outermost, "")]
)
def test_a_state_moves_with_the_calls_of_its_own_model_alone(make, path):
    """Analysis, surgery and proof leave it where it was; then each model counts its own calls.

    torch.export forgets what is assigned in a submodule.
    """
    model = make().eval()
    x = noise(2, 4)
    pruned = prune(model, (x,), keep_fraction=0.5)
    dense = pruned.analysis.captured.module

    assert pruned.proof.outcome == "proved"
    for one in (model, dense, pruned.model):
        assert one.get_buffer(f"{path}steps") == 0
        assert not one.get_buffer(f"{path}sums").any()
    for step in range(1, 4):
        assert torch.allclose(dense(x), model(x), atol=1e-5)
        pruned.model(x)
        for one in (model, dense, pruned.model):
            assert one.get_buffer(f"{path}steps") == step


class Growing(nn.Module):
    """A memory of all that was seen, which begins with nothing or with one row."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("memory", torch.zeros(rows, 8) if rows else None)

    def forward(self, y):
        rows = y.detach().mean(0, keepdim=True)
        self.memory = rows if self.memory is None else torch.cat((self.memory, rows))
        return y + self.memory.sum(0)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_memory_that_no_graph_holds_is_refused_by_name(rows):
    """A first call like eager's is not enough: the second finds what the first left."""
    with pytest.raises(ModelNotSupported, match="keeps something from call to call") as caught:
        capture(Stateful(Growing(rows)).eval(), (noise(2, 4),))

    assert caught.value.where == "state.memory"


def test_frequencies_that_forward_makes_lose_what_reads_them():
    """Sines of positions computed at every call: their width goes with that of the tokens."""

    class Encoded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            y = self.a(x).flatten(2).transpose(1, 2)
            by = 100.0 ** (-torch.arange(0, 8, 2) / 8)
            angles = torch.arange(y.shape[1])[:, None] * by
            y = y + torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
            return self.c(self.b(y).relu().mean(1))

    pruned = prune(Encoded().eval(), (image(2, size=4),), keep_fraction=0.5)

    assert pruned.proof.outcome == "proved"
    assert pruned.model.get_parameter("a.weight").shape[0] == 4


def test_what_forward_makes_keeps_its_precision():
    """Frequencies in float32 stay so in a model of half precision; in float64 they are wider."""
    module = capture(Caching("nothing kept").eval(), (noise(2, 4),)).module
    (name,) = module.tables
    made = module.get_buffer(name).clone()

    assert module.double().get_buffer(name).dtype == torch.float64
    assert torch.equal(module.half().get_buffer(name), made.double())
    assert module.get_buffer("shift").dtype == torch.float16


def test_lists_and_dicts_of_the_users_stay_the_same_objects():
    """torch.export leaves copies in their place; one that two modules share stays shared."""
    inner = {"deep": 1}
    settings, sizes = {"heads": 4, "in": inner}, [1, [2]]
    model = net(lambda m, x: m.b(m.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    model.settings, model.a.settings, model.b.sizes = settings, settings, sizes

    capture(model, (noise(2, 6),))

    assert model.settings is model.a.settings is settings
    assert settings["in"] is inner
    assert model.b.sizes is sizes
    assert (settings, sizes) == ({"heads": 4, "in": {"deep": 1}}, [1, [2]])


def test_a_list_that_forward_replaces_is_not_written_into_the_old_one():
    """A default that two modules share is no place for what each of them puts in its stead."""
    default, endless = [8, 8], [1]
    endless.append(endless)

    class Block(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.layer, self.seen, self.number = nn.Linear(8, 8), default, number

        def forward(self, x):
            self.seen = [self.number]
            return self.layer(x).relu()

    model = nn.Sequential(nn.Linear(6, 8), Block(1), Block(2), nn.Linear(8, 4))
    model[0].endless = endless

    capture(model, (noise(2, 6),))

    assert default == [8, 8]
    assert model[1].seen is not model[2].seen
    assert model[0].endless is endless
