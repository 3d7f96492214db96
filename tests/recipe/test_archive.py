"""`.pt2` files: what is kept of them, and that nothing in them is ever executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

import edgeprune
from edgeprune.errors import ModelNotSupported, UsageError, UserCodeError
from edgeprune.recipe.archive_graph import checked_graph
from edgeprune.recipe.model import load_model


class Net(nn.Module):
    """A convolution with BatchNorm, dropout, a constant, a keyword and a dict as output."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.b = nn.Linear(8, 4)
        self.shift = torch.arange(4.0)

    def forward(self, x, *, scale):
        y = self.dropout(self.bn(self.a(x)).relu().mean((2, 3)))
        return {"scores": (self.b(y) + self.shift) * scale}


class Baked(nn.Module):
    """A linear layer that writes the batch of its example into a view."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 6)
        self.b = nn.Linear(6, 2)

    def forward(self, x):
        return self.b(self.a(x.view(int(x.shape[0]), 12)).relu())


INPUTS = ((torch.randn(2, 3, 8, 8),), {"scale": torch.rand(2, 1) + 0.5})


@pytest.fixture(scope="module")
def program():
    """Net with random statistics, exported in eval mode with a dynamic batch."""
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.normal_(net.bn.running_mean)
    shapes = {"x": {0: Dim.DYNAMIC}, "scale": {0: Dim.DYNAMIC}}
    return net, torch.export.export(net, *INPUTS, dynamic_shapes=shapes)


@pytest.fixture
def archive(program, tmp_path):
    """The archive of `program`."""
    torch.export.save(program[1], tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def rewritten(path: Path, changes: dict[str, object]) -> Path:
    """The archive with some records replaced: {end of the record's name: bytes or function}."""
    out = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            for end, change in changes.items():
                if entry.filename.endswith(end):
                    content = change(content) if callable(change) else change
            new.writestr(entry.filename, content)
    return out


class Hostile:
    """Unpickled, it creates a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_archive_gives_the_model_its_example_and_its_names(archive, program):
    """Outputs, state dict and sample inputs are those of the module that was exported."""
    net = program[0]
    loaded = load_model(str(archive))

    assert loaded.name == "net"
    assert torch.equal(loaded.args[0], INPUTS[0][0])
    assert list(loaded.kwargs) == ["scale"]
    assert list(loaded.module.state_dict()) == list(net.state_dict())
    with torch.no_grad():
        got = loaded.module(*loaded.args, **loaded.kwargs)["scores"]
        want = net(*INPUTS[0], **INPUTS[1])["scores"]
    assert torch.equal(got, want)


def test_an_exported_model_is_pruned_on_any_batch_and_trains(archive):
    """The dynamic batch of the archive stays, the proof holds, and train() moves BatchNorm."""
    loaded = load_model(str(archive))
    pruned = edgeprune.prune(loaded.module, loaded.args, loaded.kwargs, keep_fraction=0.5)

    assert pruned.proof.outcome == "proved"
    assert pruned.analysis.captured.dynamic_batch
    assert pruned.plan.groups[0].name == "a.weight"
    assert pruned.model(torch.randn(5, 3, 8, 8), scale=torch.ones(5, 1))["scores"].shape == (5, 4)
    before = pruned.model.bn.running_mean.clone()
    pruned.model.train()(torch.randn(5, 3, 8, 8), scale=torch.ones(5, 1))
    assert not torch.equal(pruned.model.bn.running_mean, before)


def test_the_module_of_an_exported_program_is_taken_with_its_guards(program):
    """From Python, `ep.module()` is analyzed like the module itself: the same groups and pins."""
    net, exported = program
    of_graph = edgeprune.analyze(exported.module(), *INPUTS)
    of_net = edgeprune.analyze(net, *INPUTS)

    assert [(g.name, g.width) for g in of_graph.groups] == [
        (g.name, g.width) for g in of_net.groups
    ]
    assert [pin.unit for pin in of_graph.pins] == [pin.unit for pin in of_net.pins]
    assert [pin.where for pin in of_graph.pins] == [pin.where for pin in of_net.pins]


class First(nn.Module):
    """Reads its two samples by number: a graph of it leaves a third one out."""

    def forward(self, x):
        one, two = x
        return one - two


class Total(nn.Module):
    """One number of all samples."""

    def forward(self, x):
        return x.square().sum()


@pytest.mark.parametrize(
    ("model", "free"),
    [(Baked(), False), (nn.Sequential(Baked().a), True), (First(), False), (Total(), True)],
)
def test_a_batch_that_was_exported_fixed_is_found_out_by_running(model, free, tmp_path):
    """A graph of batch 2 stays at 2 where a size is written into it, else takes any batch."""
    x = torch.randn(2, 12)
    torch.export.save(torch.export.export(model.eval(), (x,)), tmp_path / "fixed.pt2")
    loaded = load_model(str(tmp_path / "fixed.pt2"))
    captured = edgeprune.analyze(loaded.module, loaded.args, loaded.kwargs).captured

    assert captured.dynamic_batch is free
    assert bool(captured.lost) is not free


def test_without_sample_inputs_the_shape_must_be_given(archive):
    """An archive that holds no example takes --input, and says so without."""
    bare = rewritten(archive, {"sample_inputs/model.pt": b""})

    with pytest.raises(UsageError, match="expected sample inputs in the archive.*--input"):
        load_model(str(bare))
    with pytest.raises(UserCodeError, match="to take 2x3x8x8, got"):  # the keyword is missing
        load_model(str(bare), input="2x3x8x8")


def test_weights_of_an_archive_can_be_replaced(archive, tmp_path):
    """--weights goes over the archive's own, key by key."""
    state = {name: torch.ones_like(value) for name, value in Net().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    loaded = load_model(str(archive), weights=tmp_path / "w.pt")

    assert torch.equal(loaded.module.a.weight, torch.ones(8, 3, 3, 3))


def test_a_graph_in_training_mode_is_refused(tmp_path):
    """BatchNorm and dropout written as training would prune another function: export eval()."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    torch.export.save(torch.export.export(model, (INPUTS[0][0],)), tmp_path / "training.pt2")
    loaded = load_model(str(tmp_path / "training.pt2"))

    with pytest.raises(ModelNotSupported, match=r"in training mode.*model.eval\(\)"):
        edgeprune.analyze(loaded.module, loaded.args)


def test_hostile_sample_inputs_are_refused_and_not_run(archive, tmp_path):
    """A reducer among the sample inputs is not called; torch.export.load itself does call it."""
    buffer = io.BytesIO()
    torch.save(((Hostile(tmp_path / "created"),), {}), buffer)
    hostile = rewritten(archive, {"sample_inputs/model.pt": buffer.getvalue()})

    with pytest.raises(UsageError, match="expected sample inputs of tensors only") as caught:
        load_model(str(hostile))

    assert caught.value.exit_code == 2
    assert not (tmp_path / "created").exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 (None is no input)
        torch.export.load(hostile)
    assert (tmp_path / "created").exists(), "the archive of this test is not hostile any more"


def _pickled(config: bytes, **changes: object) -> bytes:
    table = json.loads(config)
    entry = next(iter(table["config"].values()))
    entry.update(changes)
    return json.dumps(table).encode()


@pytest.mark.parametrize(
    ("record", "payload", "changes"),
    [
        ("model_weights_config.json", "weights/weight_0", {"use_pickle": True}),
        ("model_constants_config.json", "constants/tensor_0", {"use_pickle": True}),
        ("model_constants_config.json", "tensor_0", {"path_name": "opaque_obj_0"}),
        ("model_constants_config.json", "tensor_0", {"path_name": "custom_obj_0"}),
        ("model_constants_config.json", "tensor_0", {"path_name": "../../tensor_0"}),
    ],
)
def test_hostile_weights_and_constants_are_refused_and_not_run(
    archive, tmp_path, record, payload, changes
):
    """A payload that torch would unpickle, of whatever kind, is refused before it is read."""
    code = pickle.dumps(Hostile(tmp_path / "created"))
    hostile = rewritten(archive, {record: lambda old: _pickled(old, **changes), payload: code})

    with pytest.raises(UsageError, match="expected (raw tensors|plain names)"):
        load_model(str(hostile))

    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('"torch.ops.aten.relu.default"', '"torch.os.system"', "an operator of aten"),
        ('"torch.ops.aten.relu.default"', '"torch.ops.load_library"', "an operator of aten"),
        ('"torch.ops.aten.relu.default"', '"torch.ops.aten.__init__.__call__"', "not have"),
        ('"torch.ops.aten.relu.default"', '"torch.ops.aten.from_file.default"', "access to files"),
        ('"torch.ops.aten.relu.default"', '"torch.ops.aten.no_such.default"', "does not have"),
        ("Symbol('s", "open('created', 'w') + Symbol('s", "an expression of sizes"),
        ("Symbol('s", "().__class__ + Symbol('s", "an expression of sizes"),
        ('"x"', "\"x=open('created', 'w')\"", "a plain name"),
        ('"a.weight"', "\"a\\\"); open('created', 'w'); (\\\"\"", "a plain name"),
        ("builtins.dict", "collections.defaultdict", "tuples, lists and dicts"),
        ('[\\\\\\"scores\\\\\\"]', '{\\\\\\"__enum__\\\\\\": true}', "plain keys"),
    ],
)
def test_a_graph_whose_text_could_run_is_refused(archive, old, new, part):
    """Operators outside torch's, calls in sizes, code in names, modules to import: all refused."""
    with zipfile.ZipFile(archive) as records:
        (name,) = [name for name in records.namelist() if name.endswith("models/model.json")]
        text = records.read(name).decode()
    assert old in text

    with pytest.raises(ValueError, match=part):
        checked_graph(text.replace(old, new).encode())
    with pytest.raises(UsageError, match="expected a graph of operators and plain names"):
        load_model(str(rewritten(archive, {"model.json": text.replace(old, new).encode()})))


def test_guards_are_not_handed_on(archive):
    """Guards are Python text that torch compiles: they are left out."""
    with zipfile.ZipFile(archive) as records:
        (name,) = [name for name in records.namelist() if name.endswith("models/model.json")]
        content = records.read(name)

    assert json.loads(content)["guards_code"]
    assert json.loads(checked_graph(content))["guards_code"] == []


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda path: path.write_bytes(b"junk"), "a zip archive"),
        (lambda path: _zip(path, {"a/b": b""}), "of the format pt2"),
        (lambda path: _zip(path, {"n/archive_format": b"pt2"}), "one exported program"),
        (lambda path: _zip(path, {"n/a": b"", "m/a": b""}), "below one folder"),
        (lambda path: _zip(path, {"n/archive_format": b"pt2"}, zipfile.ZIP_DEFLATED), "stored"),
        (
            lambda path: _zip(
                path, {"n/archive_format": b"pt2", "n/models/model.json": b"[" * 9999}
            ),
            "a graph",
        ),
        (lambda path: None, "expected a file, got none"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, make, part):
    """Junk, other archives, several roots, compressed records and absence: one error each."""
    make(tmp_path / "some.pt2")

    with pytest.raises(UsageError, match=part) as caught:
        load_model("some.pt2", base_dir=tmp_path)

    assert "some.pt2" in str(caught.value)


def _zip(path: Path, records: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
