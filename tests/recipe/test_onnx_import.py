"""Starting from an ONNX file: imported, pruned, proved, exported; what is refused, and how."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper
from onnx_files import error, ort, write, write_script
from torch import nn

import edgeprune
from edgeprune.errors import ModelNotSupported, UsageError
from edgeprune.recipe import onnx_call
from edgeprune.recipe.model import load_model
from edgeprune.recipe.onnx_module import valid_paths

AXES = {"x": {0: "N"}, "y": {0: "N"}}


def trained(model: nn.Module) -> nn.Module:
    """Weights and statistics of every BatchNorm that differ from channel to channel."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def small_net() -> nn.Module:
    """Convolution, BatchNorm, depthwise, a linear head."""
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8, 5),
        )
    )


def images(batch: int = 2, size: int = 8, seed: int = 11) -> torch.Tensor:
    """Images with channels of their own level."""
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return x + torch.arange(3.0).reshape(1, 3, 1, 1)


def unfolded(model: nn.Module, x: torch.Tensor, path, **options):
    """The layout of a TorchScript export with its BatchNorms left in."""
    return write_script(
        model,
        x,
        path,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["x"],
        output_names=["y"],
        **options,
    )


def require_pruned_and_exported(path, x: torch.Tensor, folder) -> edgeprune.Pruned:
    """Import equals the file; pruned and proved; the new file gives the new model's values."""
    imported = edgeprune.from_onnx(path)
    with torch.no_grad():
        assert error(ort(path, x)[0], imported(x).numpy()) <= 1e-4
    pruned = edgeprune.prune(imported, (x,), keep_fraction=0.5)
    assert pruned.proof.holds
    before = sum(p.numel() for p in imported.parameters())
    assert sum(p.numel() for p in pruned.model.parameters()) < 0.6 * before
    artifact = edgeprune.export(pruned, folder / "pruned.onnx")
    with torch.no_grad():
        expected = pruned.model(x).numpy()
    assert error(expected, ort(artifact.path, x)[0]) <= 1e-4
    return pruned


def test_our_own_export_comes_back(tmp_path):
    """A file of edgeprune.export: BatchNorms folded into convolutions, batch free."""
    path = edgeprune.export(small_net(), tmp_path / "m.onnx", (images(),)).path

    pruned = require_pruned_and_exported(path, images(3), tmp_path)

    assert pruned.analysis.captured.dynamic_batch


def test_the_older_exporter_gives_the_groups_of_the_model_itself(tmp_path):
    """Nothing is lost on the way: groups, widths, names and pins are those of the torch model."""
    path = unfolded(small_net(), images(), tmp_path / "m.onnx", dynamic_axes=AXES)

    pruned = require_pruned_and_exported(path, images(3), tmp_path)

    own = edgeprune.analyze(small_net(), (images(),))
    rows = [
        [(g.name, g.kind, g.width, g.depthwise) for g in analysis.groups]
        for analysis in (own, pruned.analysis)
    ]
    assert rows[0] == rows[1]
    names = set(dict(small_net().named_parameters()))
    assert set(dict(pruned.model.named_parameters())) == names


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("resnet18", "fixed"),
        ("mobilenet_v3_small", "unfolded"),
        ("shufflenet_v2_x0_5", "dynamo"),
    ],
)
def test_classifiers_in_three_layouts(tmp_path, name, layout):
    """A fixed batch of 1; BatchNorms left in; torch's newer exporter with a free batch."""
    model = trained(torchvision.models.get_model(name, weights=None))
    x, path = images(2, 32), tmp_path / "m.onnx"
    if layout == "fixed":
        write_script(model, x[:1], path, opset_version=17)
        x = x[:1]
    elif layout == "unfolded":
        unfolded(model, x, path, dynamic_axes=AXES, opset_version=13)
    else:
        edgeprune.export(model, path, (x,))

    pruned = require_pruned_and_exported(path, x, tmp_path)

    assert pruned.analysis.captured.dynamic_batch
    assert pruned.analysis.unknown == ()


def test_a_transformer_encoder_loses_heads_and_neurons(tmp_path):
    """Attention by reshape, transpose, matmul, softmax; LayerNorm; GELU by Erf."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 8, 2, 4, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.1)
    x = images(2, 16)
    path = write_script(
        model,
        x,
        tmp_path / "v.onnx",
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=AXES,
    )

    pruned = require_pruned_and_exported(path, x, tmp_path)

    assert {"head", "neuron"} <= {group.kind for group in pruned.analysis.groups}


def test_a_fixed_batch_is_opened_only_where_samples_stay_apart(tmp_path):
    """The file's batch of 2 is written into a reshape; one that mixes samples stays as it is."""
    constants = {"w": np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)}
    shape = {"x": ("float32", [2, 3, 4])}
    flat = [
        helper.make_node("Reshape", ["x", "s"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    mixed = [
        helper.make_node("ReduceMean", ["x", "zero"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["d"]),
        helper.make_node("Reshape", ["d", "s"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    constants |= {"s": np.array([2, 12]), "zero": np.array([0])}
    apart = write(tmp_path / "a.onnx", flat, shape, constants=constants)
    together = write(tmp_path / "b.onnx", mixed, shape, constants=constants)
    x = torch.randn(5, 3, 4)

    assert edgeprune.from_onnx(apart)(x).shape == (5, 4)
    with pytest.raises(RuntimeError):
        edgeprune.from_onnx(together)(x)


def test_weights_that_happen_to_be_equal_are_not_tied(tmp_path):
    """The older exporter writes equal weights once and copies them by Identity."""
    model = small_net()
    nn.init.zeros_(model[1].bias)
    nn.init.zeros_(model[4].bias)
    path = unfolded(model, images(), tmp_path / "m.onnx", dynamic_axes=AXES)

    imported = edgeprune.from_onnx(path)

    assert "Identity" in {node.op_type for node in onnx.load(path).graph.node}
    parameters = dict(imported.named_parameters())
    assert parameters["1.bias"] is not parameters["4.bias"]
    assert torch.equal(parameters["1.bias"], parameters["4.bias"])


def test_pins_say_the_name_of_the_file_s_node(tmp_path):
    """Where a person looks in a viewer: operator and node name."""
    path = edgeprune.export(small_net(), tmp_path / "m.onnx", (images(),)).path
    names = {node.name for node in onnx.load(path).graph.node}

    analysis = edgeprune.analyze(edgeprune.from_onnx(path), (images(),))

    places = [pin.where for pin in analysis.pins if pin.where]
    assert places
    assert all(place.split("'")[1] in names for place in places)


def test_external_data_is_read_and_must_lie_beside_the_file(tmp_path):
    """Weights in a file of their own; one that points outside is refused."""
    path = unfolded(small_net(), images(), tmp_path / "m.onnx", dynamic_axes=AXES)
    inside = tmp_path / "in"
    inside.mkdir()
    model = onnx.load(path)
    onnx.save(
        model, inside / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0
    )
    with torch.no_grad():
        got = edgeprune.from_onnx(inside / "e.onnx")(images()).numpy()
    assert error(ort(path, images())[0], got) <= 1e-4

    model = onnx.load(inside / "e.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../m.onnx"
    onnx.save(model, inside / "hostile.onnx")
    with pytest.raises(UsageError, match="lies outside"):
        edgeprune.from_onnx(inside / "hostile.onnx")


def test_another_function_than_the_file_s_is_never_taken(tmp_path, monkeypatch):
    """A wrong translation of one operator is caught by the comparison with ONNX Runtime."""
    path = edgeprune.export(small_net(), tmp_path / "m.onnx", (images(),)).path
    monkeypatch.setitem(onnx_call._OPS, "Clip", lambda call: call.tensor(0))

    with pytest.raises(ModelNotSupported, match=r"expected ONNX Runtime's values within 0\.0001"):
        edgeprune.from_onnx(path)


def refused_files(folder):
    """Files that must not be taken, each with what its error says."""
    x = {"x": ("float32", ["N", 4])}
    w = {"w": np.ones((4, 4), np.float32)}
    relu = helper.make_node("Relu", ["x"], ["y"], name="n")
    scale = {"s": np.float32(0.1), "z": np.int8(0)}
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])],
        "b",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    return {
        "custom": (
            write(
                folder / "custom.onnx",
                [helper.make_node("Swirl", ["x"], ["y"], name="n", domain="my.ops")],
                x,
                domain="my.ops",
            ),
            ModelNotSupported,
            r"node my\.ops\.Swirl 'n' \(opset 20\)",
        ),
        "quantized": (
            write(
                folder / "q.onnx",
                [
                    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
                ],
                x,
                constants=scale,
            ),
            ModelNotSupported,
            "a quantized one.*Prune the float model",
        ),
        "branch": (
            write(
                folder / "if.onnx",
                [
                    helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
                    helper.make_node("Greater", ["m", "zero"], ["c"]),
                    helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
                ],
                x,
                constants={"zero": np.float32(0)},
            ),
            ModelNotSupported,
            "whose branch or count depends on data",
        ),
        "half": (
            write(folder / "h.onnx", [relu], {"x": ("float16", ["N", 4])}),
            ModelNotSupported,
            "float16 in 'x'.*Export the float32 model",
        ),
        "old": (
            write(folder / "o.onnx", [relu], x, opset=6),
            ModelNotSupported,
            "expected opset 7 or newer, got opset 6",
        ),
        "constant": (
            write(
                folder / "c.onnx",
                [helper.make_node("Mul", ["x", "zero"], ["y"])],
                x,
                constants={"zero": np.float32(0)},
            ),
            ModelNotSupported,
            "outputs that vary",
        ),
        "open": (
            write(folder / "p.onnx", [relu], {"x": ("float32", ["N", "L"])}),
            UsageError,
            "expected fixed sizes of input 'x'.*--input",
        ),
        "training": (
            write(
                folder / "t.onnx",
                [
                    helper.make_node(
                        "BatchNormalization",
                        ["x", "w", "w", "w", "w"],
                        ["y", "y1", "y2"],
                        name="n",
                        training_mode=1,
                    )
                ],
                x,
                outputs=3,
                constants={"w": np.ones(4, np.float32)},
            ),
            ModelNotSupported,
            r"training_mode = 0, got 1",
        ),
        "data": (
            write(
                folder / "d.onnx",
                [
                    helper.make_node("Cast", ["x"], ["i"], to=7),
                    helper.make_node("ReduceMax", ["i"], ["m"], keepdims=0),
                    helper.make_node("Unsqueeze", ["m", "a"], ["s"]),
                    helper.make_node("Expand", ["w", "e"], ["v"]),
                    helper.make_node("ConstantOfShape", ["s"], ["f"]),
                    helper.make_node("ReduceSum", ["f"], ["g"]),
                    helper.make_node("Add", ["x", "g"], ["y"]),
                ],
                x,
                constants={"a": np.array([0]), "e": np.array([4, 4]), **w},
            ),
            ModelNotSupported,
            "ConstantOfShape",
        ),
    }


@pytest.mark.parametrize(
    "kind", ["custom", "quantized", "branch", "half", "old", "constant", "open", "training", "data"]
)
def test_what_cannot_be_done_is_refused_with_the_reason(tmp_path, kind):
    """Another domain, quantized, control flow, half precision: one clear error each."""
    path, kind_of_error, words = refused_files(tmp_path)[kind]

    with pytest.raises(kind_of_error, match=words):
        edgeprune.from_onnx(path)


def test_an_example_that_does_not_fit_is_the_caller_s_error(tmp_path):
    """Number, dtype and sizes are those of the file."""
    path = edgeprune.export(small_net(), tmp_path / "m.onnx", (images(),)).path

    for wrong in (images(2, 9), images().double(), (images(), images())):
        with pytest.raises(UsageError, match="expected inputs of batchx3x8x8, got"):
            edgeprune.from_onnx(path, wrong)
    with pytest.raises(UsageError, match="expected a file, got none"):
        edgeprune.from_onnx(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="expected inputs of batchx3x8x8, got 2x4"):
        load_model(str(path), input="2x4")


def test_names_become_valid_and_stay_apart():
    """torch accepts them; none is a module's own attribute, none the head of another."""
    names = ["a.0.weight", "onnx::MatMul_12", "float", "a.0", "x/y:0", "x.y_0", "class", "steps.1"]

    paths = valid_paths(names)

    assert paths[:2] == ["a.0.weight", "onnx__MatMul_12"]
    assert len(set(paths)) == len(names)
    assert not any(one != two and two.startswith(f"{one}.") for one in paths for two in paths)
    assert not {"float", "class"} & set(paths)


def edgeprune_process(*words) -> subprocess.CompletedProcess[str]:
    """The program as a person runs it."""
    command = [sys.executable, "-m", "edgeprune", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_commands_take_a_file(tmp_path):
    """inspect lists its groups; prune leaves a bundle whose parity passed: exit code 0."""
    path = unfolded(small_net(), images(), tmp_path / "m.onnx", dynamic_axes=AXES)

    seen = edgeprune_process("inspect", path, "--json")
    done = edgeprune_process("prune", path, "--keep", "0.5", "--out", tmp_path / "out", "--json")

    assert seen.returncode == 0, seen.stderr
    assert [(g["name"], g["width"]) for g in json.loads(seen.stdout)["groups"]] == [("0.weight", 8)]
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)["report"]["verdicts"]
    assert [(v["gate"], v["outcome"]) for v in verdicts] == [("parity", "pass")]
    shape = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer[0].dims
    assert 4 in shape


def test_the_commands_refuse_with_the_contract_s_exit_codes(tmp_path):
    """2 for a file that is none or not there, 4 for one that is not understood."""
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    quantized = refused_files(tmp_path)["quantized"][0]

    assert edgeprune_process("inspect", tmp_path / "bad.onnx").returncode == 2
    assert edgeprune_process("inspect", tmp_path / "none.onnx").returncode == 2
    refused = edgeprune_process("prune", quantized)
    assert refused.returncode == 4
    assert "Prune the float model" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
