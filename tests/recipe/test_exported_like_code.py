"""A model from a `.pt2` file is the model from code: groups, pins, names, training, outputs."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.export import Dim

import edgeprune
from edgeprune.graph.analysis import Analysis
from edgeprune.recipe.archive_graph import checked_graph
from edgeprune.recipe.model import load_model


@dataclass
class Answer:
    """Outputs by name, as transformers gives them."""

    logits: torch.Tensor
    pooled: torch.Tensor


torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")


class Words(nn.Module):
    """Embedding tied to the head, BatchNorm, dropout, a frozen layer, a head for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)
        self.norm, self.drop = nn.BatchNorm1d(24), nn.Dropout(0.5)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.table.weight
        self.side = nn.Linear(12, 3)
        self.frozen = nn.Linear(12, 12).requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> Answer:
        x = self.table(ids)
        hidden = self.drop(self.norm(self.up(x).transpose(1, 2)).relu().transpose(1, 2))
        x = x + self.frozen(self.down(hidden))
        self.extra = self.side(x) if self.training else None
        return Answer(logits=self.head(x), pooled=hidden.mean(1).square())


IDS = (torch.arange(10).reshape(2, 5),)


@pytest.fixture(scope="module")
def words() -> Words:
    """The model with random statistics, in eval mode."""
    torch.manual_seed(0)
    model = Words().eval()
    nn.init.normal_(model.norm.running_mean)
    nn.init.uniform_(model.norm.running_var, 0.5, 1.5)
    return model


@pytest.fixture(scope="module", params=["dynamic", "fixed"])
def loaded(request, words, tmp_path_factory):
    """The same from its file: exported with a dynamic batch, and with one of 2."""
    shapes = ({0: Dim.DYNAMIC},) if request.param == "dynamic" else None
    path = tmp_path_factory.mktemp("pt2") / "words.pt2"
    torch.export.save(torch.export.export(words, IDS, dynamic_shapes=shapes, strict=False), path)
    return load_model(str(path))


def told(analysis: Analysis) -> tuple[object, ...]:
    """Groups with every slot, and pins with reason and line."""
    return (
        [(g.name, g.width, [(t.parameter, t.dim) for t in g.tables]) for g in analysis.groups],
        [(pin.unit, pin.reason, pin.where) for pin in analysis.pins],
        list(analysis.captured.module.state_dict()),
    )


def test_a_file_is_analysed_like_the_code(words, loaded):
    """The same groups, pins, lines and names; the tie is one tensor; what is lost is told."""
    of_code = edgeprune.analyze(words, IDS)
    of_file = edgeprune.analyze(loaded.module, loaded.args, loaded.kwargs)
    module = of_file.captured.module

    assert told(of_file) == told(of_code)
    assert of_code.groups
    assert "test_exported_like_code.py" in of_file.pins[0].where
    assert module.get_parameter("head.weight") is module.get_parameter("table.weight")
    assert not module.get_parameter("frozen.weight").requires_grad
    assert "side does nothing in eval mode" in of_file.captured.lost
    assert "side (Linear) does nothing in eval mode" in of_code.captured.lost


def test_a_file_is_pruned_to_the_same_model(words, loaded):
    """The same plan and, bit for bit, the same outputs, named alike."""
    of_code = edgeprune.prune(words, IDS)
    of_file = edgeprune.prune(loaded.module, loaded.args, loaded.kwargs)

    assert of_file.proof.outcome == "proved"
    assert of_file.plan == of_code.plan
    ours, theirs = of_file.model(*IDS), of_code.model(*IDS)
    assert torch.equal(ours["logits"], theirs.logits)
    assert torch.equal(ours["pooled"], theirs.pooled)


def test_a_pruned_file_trains(loaded):
    """train() moves statistics and drops units, a step changes a tie under both names, the frozen
    layer has no gradient."""
    module = edgeprune.prune(loaded.module, loaded.args, loaded.kwargs).model.train()
    mean = module.norm.running_mean.clone()
    one, two = (module(*IDS)["logits"] for _ in range(2))
    one.square().mean().backward()
    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1).step()

    assert not torch.equal(one, two)
    assert not torch.equal(module.norm.running_mean, mean)
    assert torch.equal(module.head.weight, module.table.weight)
    assert module.frozen.weight.grad is None


def test_what_was_pruned_and_exported_by_the_user_goes_on(words, tmp_path):
    """Pruned, exported with torch, opened: the same analysis with the lines of the user's code."""
    small = edgeprune.prune(words, IDS).model
    shapes = ({0: Dim.DYNAMIC},)
    torch.export.save(torch.export.export(small, IDS, dynamic_shapes=shapes), tmp_path / "s.pt2")
    again = load_model(str(tmp_path / "s.pt2"))
    pruned = edgeprune.prune(again.module, again.args, again.kwargs)

    assert told(pruned.analysis) == told(edgeprune.analyze(small, IDS))
    assert "test_exported_like_code.py" in pruned.analysis.pins[0].where
    assert pruned.proof.outcome == "proved"


def test_classes_of_outputs_are_never_looked_up():
    """The name of the class is gone from the checked graph, its fields are keys; fields that are
    no plain names stay what they are, and are refused."""
    leaf = {"type": None, "context": None, "children_spec": []}

    def structure(context: object) -> bytes:
        node = {"type": "os.system", "context": context, "children_spec": [leaf]}
        return json.dumps({"out_spec": json.dumps([1, node])}).encode()

    (text,) = json.loads(checked_graph(structure('["logits"]'))).values()
    assert json.loads(text)[1]["type"] == "builtins.dict"
    for context in ('["__import__(1)"]', '["a", "b"]', "null", '[["a"], ["b"], []]', "{"):
        with pytest.raises(ValueError, match="in place of tuples, lists and dicts|unreadable"):
            checked_graph(structure(context))


def test_a_class_among_the_inputs_is_refused():
    """Only outputs are renamed: an input of a class would have to be made by it."""
    leaf = {"type": None, "context": None, "children_spec": []}
    node = {"type": "tests.Answer", "context": '["logits"]', "children_spec": [leaf]}
    with pytest.raises(ValueError, match="in place of tuples, lists and dicts"):
        checked_graph(json.dumps({"in_spec": json.dumps([1, node])}).encode())
