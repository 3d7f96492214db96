"""A model goes to disk as JSON and safetensors and comes back, and a hostile file does nothing."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from small_nets import Net
from torch import fx, nn
from torch.utils import _pytree as pytree

from edgeprune.errors import ModelNotSupported, UsageError
from edgeprune.graph.capture import capture
from edgeprune.graph.graph_json import graph_from_json, graph_to_json
from edgeprune.pipeline.load import load, save


class Pair(NamedTuple):
    """A named tuple of the user's."""

    above: torch.Tensor
    below: torch.Tensor


class Rich(nn.Module):
    """Ties, a frozen weight, lifted constants, a cache, dropout, size arithmetic, nested output."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.b.bias.requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("cache", torch.arange(4.0), persistent=False)

    def forward(self, x, *, scale=None):
        y = self.drop(self.norm(self.a(x)).relu()) + self.cache
        y = self.b(y) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        wide = y.view(x.shape[0] * 2, 2)[:, :1]
        masked = y.masked_fill(y < -9, float("-inf")).softmax(-1).to(torch.float64)
        return {"wide": wide, "pair": [masked, y * scale]}


@pytest.fixture
def saved(tmp_path):
    """The captured model, an input, and the folder it was saved to."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Rich().eval()
        inputs = (torch.randn(3, 4), torch.randn(3, 1))
    module = capture(model, inputs[:1], {"scale": inputs[1]}).module
    save(module, tmp_path)
    return module, inputs, tmp_path


def test_a_loaded_model_computes_exactly_the_same(saved):
    """Bit-identical outputs in the same structure, also at another batch size."""
    module, (x, scale), folder = saved
    loaded = load(folder)

    for rows in (3, 1):
        want, got = module(x[:rows], scale=scale[:rows]), loaded(x[:rows], scale=scale[:rows])
        assert list(got) == ["wide", "pair"]
        assert torch.equal(got["wide"], want["wide"])
        assert torch.equal(got["pair"][0], want["pair"][0])


def test_ties_frozen_weights_and_the_state_dict_come_back(saved):
    """Shared memory, requires_grad and the names of the state dict are as before."""
    module, _, folder = saved
    loaded = load(folder)

    assert loaded.get_parameter("b.weight") is loaded.get_parameter("a.weight")
    assert not loaded.get_parameter("b.bias").requires_grad
    assert loaded.get_parameter("a.bias").requires_grad
    assert list(loaded.state_dict()) == list(module.state_dict())
    module.load_state_dict(load_file(folder / "weights.safetensors"))


def test_a_loaded_model_trains(saved):
    """train() moves the batch statistics and turns dropout on; eval() turns it off again."""
    _, (x, scale), folder = saved
    loaded = load(folder)
    before = loaded.get_buffer("norm.running_mean").clone()

    loaded.train()
    first, second = (loaded(x, scale=scale)["pair"][1] for _ in range(2))
    loaded.eval()

    assert not torch.equal(first, second)
    assert not torch.equal(loaded.get_buffer("norm.running_mean"), before)
    assert torch.equal(loaded(x, scale=scale)["wide"], loaded(x, scale=scale)["wide"])


def test_source_lines_survive(saved):
    """Reasons for pins name the user's line also after a load."""
    _, _, folder = saved

    places = {node.name: node.meta["where"] for node in load(folder).graph.nodes}

    assert (
        places["linear"].startswith("test_graph_json.py:") or "test_graph_json" in places["linear"]
    )


def test_an_operator_of_another_library_cannot_be_written():
    """The error names node and operator, and says what still works."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(print, (x,)),))
    graph.set_codegen(capture(nn.Linear(2, 2).eval(), (torch.ones(2, 2),)).module.graph._codegen)

    with pytest.raises(ModelNotSupported, match=r"print.*`edgeprune\.load` cannot"):
        graph_to_json(graph)


GROUPED = """
import sys
from edgeprune.pipeline.load import load
from torch import arange, tensor
print(load(sys.argv[1])(arange(12.0).view(3, 4), tensor([1, 3])).tolist())
"""


def test_an_operator_that_a_known_package_brings_is_read_where_nobody_imported_it(tmp_path):
    """Experts of transformers: a new process that knows the folder alone computes the same."""
    importlib.import_module("transformers.integrations.moe")

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.arange(16.0).view(2, 4, 2))

        def forward(self, x, ends):
            return torch.ops.transformers.grouped_mm_fallback(x, self.weight, ends)

    given = (torch.arange(12.0).view(3, 4), torch.tensor([1, 3]))
    module = capture(Experts().eval(), given, dynamic_batch=False).module
    save(module, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", GROUPED, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == module(*given).tolist()


CLASSES = """
import sys
from edgeprune.pipeline.load import load
from torch import ones
found = load(sys.argv[1])(ones(2, 4))
print(sorted(found), sorted(found["inner"]), type(found["pair"]).__name__, found["sum"].item())
assert "transformers" not in sys.modules
"""


def test_outputs_of_the_users_classes_are_dicts_for_who_has_no_code_of_his(tmp_path):
    """A dataclass and an output of transformers become dicts, a named tuple a tuple."""
    outputs = importlib.import_module("transformers.modeling_outputs")

    @dataclasses.dataclass
    class Found:
        sum: torch.Tensor
        inner: object
        pair: Pair

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            y = self.a(x)
            inner = outputs.SequenceClassifierOutput(logits=y)
            return Found(sum=x.sum(), inner=inner, pair=Pair(y + 1, y - 1))

    module = capture(Model().eval(), (torch.ones(2, 4),), dynamic_batch=False).module
    assert type(module(torch.ones(2, 4))) is Found
    save(module, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CLASSES, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "['inner', 'pair', 'sum'] ['logits'] tuple 8.0"


HOSTILE = [
    ("target", "os.system"),
    ("target", "aten.from_file.default"),
    ("target", "load_library.x.default"),
    ("target", "aten.__class__.__init__"),
    ("target", "operator.attrgetter"),
    ("name", 'x"); import os; ("'),
    ("op", "call_module"),
    ("kwargs", {"a=print(1), b": 1}),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_a_hostile_node_is_refused(saved, key, value):
    """Only ATen operators by their own name; nothing becomes Python source."""
    _, _, folder = saved
    data = json.loads((folder / "graph.json").read_text())
    node = next(n for n in data["nodes"] if n["op"] == "call_function")
    node[key] = value

    with pytest.raises(UsageError, match="reading the graph at"):
        graph_from_json(json.dumps(data))


@pytest.mark.parametrize(
    "target", ['a.weight"); print("', "forward.__globals__", "training.x", "a.none"]
)
def test_a_hostile_tensor_name_is_refused(saved, target):
    """A get_attr reaches only tensors that were read, and the mode of a module."""
    _, _, folder = saved
    data = json.loads((folder / "graph.json").read_text())
    next(n for n in data["nodes"] if n["op"] == "get_attr")["target"] = target
    (folder / "graph.json").write_text(json.dumps(data))

    with pytest.raises(UsageError):
        load(folder)


def test_a_hostile_argument_name_is_refused(saved):
    """Names of arguments become Python source in fx, so they must be words."""
    _, _, folder = saved
    data = json.loads((folder / "graph.json").read_text())
    data["arguments"][0] = "x=print(1)"

    with pytest.raises(UsageError, match="ValueError: name"):
        graph_from_json(json.dumps(data))


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    """The missing file is named."""
    with pytest.raises(UsageError, match=r"graph\.json"):
        load(tmp_path)
    (tmp_path / "graph.json").write_text("{}")
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UsageError, match=r"weights\.safetensors"):
        load(tmp_path)


class Box:
    """A container that its author registered, with something else than names in its context."""

    def __init__(self, inside, kind):
        self.rows, self.inside, self.kind = len(inside), inside, kind


pytree.register_pytree_node(
    Box,
    lambda box: ([box.inside], [box.kind]),
    lambda members, context: Box(members[0], context[0]),
    serialized_type_name="test_graph_json.Box",
)


def test_a_container_that_its_author_registered_comes_back_as_itself(tmp_path):
    """It is no dataclass: what stands in its context are no names of fields."""
    model = Net(lambda m, x: Box(m.a(x), "logits"), {"a": nn.Linear(4, 3)})
    module = capture(model.eval(), (torch.ones(2, 4),)).module
    save(module, tmp_path)

    found = load(tmp_path)(torch.ones(2, 4))

    assert (type(found), found.kind) == (Box, "logits")


def test_keys_that_json_cannot_hold_are_told_when_the_bundle_is_written(tmp_path):
    """A key of two numbers would come back as a list, and no dict takes that."""
    model = Net(lambda m, x: {(0, 1): m.a(x)}, {"a": nn.Linear(4, 3)})
    module = capture(model.eval(), (torch.ones(2, 4),)).module

    with pytest.raises(ModelNotSupported, match="keys JSON cannot hold"):
        save(module, tmp_path)
