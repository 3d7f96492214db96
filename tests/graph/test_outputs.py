"""Outputs and inputs of types that torch.export does not know."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from small_nets import net, noise
from torch import nn

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.capture import capture
from edgeprune.surgery.prune import prune
from edgeprune.surgery.user_class import to_module


@dataclass
class Inner:
    """One tensor, and a number."""

    scores: torch.Tensor
    count: int = 3


@dataclass
class Answer:
    """A dataclass in a dataclass, and a field that may be empty."""

    inner: Inner
    hidden: torch.Tensor | None = None


@dataclass
class Question:
    """What a model is asked."""

    features: torch.Tensor


@dataclass
class Counted:
    """Made with a field that is not given: it cannot be put together from its fields."""

    scores: torch.Tensor
    calls: int = field(default=0, init=False)


class Cache:
    """What a language model keeps for the next token."""

    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys


def mlp(forward):
    """Two linear layers around a hidden width of 16."""
    return net(forward, a=nn.Linear(4, 16), b=nn.Linear(16, 3))


def test_dataclasses_that_nobody_registered_are_containers():
    """A dataclass goes in and a nested one comes out, of the pruned model too."""

    def run(m, question):
        return Answer(Inner(m.b(m.a(question.features).relu()), count=5))

    pruned = prune(mlp(run), (Question(noise(2, 4)),))
    answer = pruned.model(Question(noise(7, 4)))

    assert pruned.analysis.captured.dynamic_batch
    assert type(answer) is Answer
    assert answer.inner.scores.shape == (7, 3)
    assert (answer.inner.count, answer.hidden) == (5, None)


@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_a_cache_among_the_outputs_is_left_out_and_told(dynamic_batch):
    """None stands in its place, the note says so, and the user's model is as it was."""

    def run(m, x):
        y = m.a(x)
        return {"scores": m.b(y.relu()), "cache": Cache(y)}

    model = mlp(run)
    captured = capture(model, (noise(2, 4),), dynamic_batch=dynamic_batch)
    out = captured.module(noise(2, 4))

    assert set(out) == {"scores", "cache"}
    assert out["cache"] is None
    assert any("an output of type Cache" in note for note in captured.lost)
    assert isinstance(model(noise(2, 4))["cache"], Cache)
    assert "forward" not in vars(model)


def test_the_users_class_comes_back_with_its_cache():
    """The cache is left out of the comparison only: the class goes on giving it."""

    def run(m, x):
        y = m.a(x)
        return m.b(y.relu()), Cache(y)

    model = mlp(run)
    returned = to_module(prune(model, (noise(2, 4),)), model)

    scores, cache = returned.module(noise(2, 4))
    assert scores.shape == (2, 3)
    assert cache.keys.shape == (2, 8)


@pytest.mark.parametrize("kind", [Cache, Counted, lambda y: {1, 2}])
def test_outputs_without_a_tensor_are_refused(kind):
    """Nothing but what no graph holds: the type is named, not torch.export's trouble with it."""
    with pytest.raises(ModelNotSupported, match=r"tensors among its outputs, got (Cache|Co|set)"):
        capture(mlp(lambda m, x: kind(m.b(m.a(x).relu()))), (noise(2, 4),))
