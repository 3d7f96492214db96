"""An exported file computes what torch computes, under the user's names, and says its origin."""

from __future__ import annotations

import dataclasses
import logging
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.errors import ModelNotSupported, UsageError
from edgeprune.exporting import onnx as exporting_onnx
from edgeprune.exporting.onnx import Artifact, check_file, export


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, image):
        return self.head(self.norm(self.conv(image)).relu().mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)

    def forward(self, ids, weight):
        mixed = self.mix(self.table(ids) * weight.unsqueeze(-1))
        return mixed, mixed.reshape(-1, 8).sum(1)


class FromDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Parameter(torch.randn(5))
        self.a = nn.Linear(5, 5)

    def forward(self, batch):
        y = self.a(batch["x"]) + self.output
        return {"output": y, "pair": (y * batch["scale"], y.cumsum(1)), "nothing": None}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _agree(path, model, feeds_of, call):
    """Largest difference at batch 1, 2 and 5, in standard deviations of each output."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (1, 2, 5):
        feeds = feeds_of(np.random.default_rng(batch), batch)
        with torch.no_grad():
            expected = call(model, {k: torch.tensor(v) for k, v in feeds.items()})
        for a, b in zip(expected, session.run(None, feeds), strict=True):
            assert a.shape == b.shape
            assert float(a.std()) > 0.01
            worst = max(worst, float(np.abs(a.numpy() - b).max() / a.numpy().std()))
    return worst


def _floats(*names, shape=()):
    return lambda rng, b: {n: rng.normal(size=(b, *shape)).astype(np.float32) for n in names}


def test_one_tensor_in_one_out(tmp_path):
    """Names image and output, symbol batch, torch's values at batch 1, 2 and 5."""
    model = Net().eval()

    got = export(model, tmp_path / "m.onnx", (torch.randn(2, 1, 8, 8),))

    assert [(i.name, i.dtype, i.shape) for i in got.inputs] == [
        ("image", "tensor(float)", ("batch", 1, 8, 8))
    ]
    assert [(o.name, o.shape) for o in got.outputs] == [("output", ("batch", 4))]
    feeds = _floats("image", shape=(1, 8, 8))
    assert _agree(got.path, model, feeds, lambda m, f: (m(f["image"]),)) <= 1e-4


def test_integer_input_second_input_and_two_outputs(tmp_path):
    """int64 stays int64, outputs are counted, and a batch folded into a dim is 3*batch."""
    model = TwoInputs().eval()
    example = (torch.randint(0, 11, (2, 3)), torch.randn(2, 3))

    got = export(model, tmp_path / "m.onnx", example)

    assert [(i.name, i.dtype) for i in got.inputs] == [
        ("ids", "tensor(int64)"),
        ("weight", "tensor(float)"),
    ]
    assert [(o.name, o.shape) for o in got.outputs] == [
        ("output_0", ("batch", 3, 8)),
        ("output_1", ("3*batch",)),
    ]

    def feeds(rng, b):
        return {"ids": rng.integers(0, 11, (b, 3)), **_floats("weight", shape=(3,))(rng, b)}

    assert _agree(got.path, model, feeds, lambda m, f: m(f["ids"], f["weight"])) <= 1e-4


def test_dict_in_dict_out_with_a_parameter_of_the_same_name(tmp_path):
    """Keys are the names; the weight called `output` steps aside; None gives no output."""
    model = FromDict().eval()
    example = ({"x": torch.randn(2, 5), "scale": torch.randn(2, 1)},)

    got = export(model, tmp_path / "m.onnx", example)

    assert [i.name for i in got.inputs] == ["x", "scale"]
    assert [o.name for o in got.outputs] == ["output", "pair_0", "pair_1"]

    def feeds(rng, b):
        return {**_floats("x", shape=(5,))(rng, b), **_floats("scale", shape=(1,))(rng, b)}

    def call(m, f):
        result = m(f)
        return result["output"], *result["pair"]

    assert _agree(got.path, model, feeds, call) <= 1e-4


def test_keyword_input_and_an_example_of_one_sample(tmp_path):
    """A batch of 1 in the example is not baked in, and a keyword keeps its name."""

    class Keyword(nn.Module):
        def forward(self, x, *, shift):
            return (x + shift).cumsum(1)

    model = Keyword().eval()

    got = export(model, tmp_path / "m.onnx", (torch.randn(1, 4),), {"shift": torch.randn(1, 4)})

    assert [i.shape for i in got.inputs] == [("batch", 4), ("batch", 4)]
    feeds = _floats("x", "shift", shape=(4,))
    assert _agree(got.path, model, feeds, lambda m, f: (m(**f),)) <= 1e-4


def test_a_fixed_batch_on_demand(tmp_path):
    """dynamic_batch=False writes the example's own batch into the shapes."""
    got = export(Net().eval(), tmp_path / "m.onnx", (torch.randn(3, 1, 8, 8),), dynamic_batch=False)

    assert got.inputs[0].shape == (3, 1, 8, 8)


def test_an_output_that_is_an_input_and_one_given_twice(tmp_path):
    """Passing x through and returning one tensor twice still gives three named outputs."""

    class Through(nn.Module):
        def forward(self, x):
            y = x * 2
            return {"x": x, "y": y, "again": y}

    got = export(Through().eval(), tmp_path / "m.onnx", (torch.randn(2, 4),))

    assert [o.name for o in got.outputs] == ["x_out", "y", "again"]
    session = ort.InferenceSession(str(got.path), providers=["CPUExecutionProvider"])
    x = np.ones((3, 4), np.float32)
    assert [float(v[0, 0]) for v in session.run(None, {"x": x})] == [1.0, 2.0, 2.0]


def test_origin_is_in_the_metadata_and_no_path_of_this_machine(tmp_path):
    """Versions and the caller's pairs are read back; the exporter's stack traces are not there."""
    got = export(
        Net().eval(),
        tmp_path / "m.onnx",
        (torch.randn(2, 1, 8, 8),),
        metadata=(("edgeprune.plan", "abc"), ("edgeprune.version", "kept")),
    )

    written = {p.key: p.value for p in onnx.load(got.path).metadata_props}
    assert written["edgeprune.plan"] == "abc"
    assert written["edgeprune.version"] == "kept"
    assert written["edgeprune.torch"] == torch.__version__
    assert b"site-packages" not in got.path.read_bytes()
    assert b"/test_onnx.py" not in got.path.read_bytes()
    assert edgeprune.__version__.encode() not in got.path.read_bytes()


def test_hash_and_size_are_those_of_the_file_and_repeat(tmp_path):
    """Two exports of one model are the same bytes; sha256sum would say the same."""
    import hashlib

    model, x = Net().eval(), torch.randn(2, 1, 8, 8)

    one = export(model, tmp_path / "one.onnx", (x,))
    two = export(model, tmp_path / "two.onnx", (x,))

    assert one.sha256 == hashlib.sha256(one.path.read_bytes()).hexdigest() == two.sha256
    assert one.size_bytes == one.path.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.onnx", "two.onnx"]


def test_a_pruned_model_is_exported_with_its_own_example_and_plan(tmp_path):
    """export(pruned, path) is enough; the plan's fingerprint is in the metadata."""
    pruned = edgeprune.prune(Net().eval(), (torch.randn(2, 1, 8, 8),))

    got = export(pruned, tmp_path / "m.onnx")

    written = {p.key: p.value for p in onnx.load(got.path).metadata_props}
    assert written["edgeprune.plan_sha256"] == pruned.plan.fingerprint
    feeds = _floats("image", shape=(1, 8, 8))
    assert _agree(got.path, pruned.model, feeds, lambda m, f: (m(f["image"]),)) <= 1e-4
    with pytest.raises(UsageError, match=r"export\(model, path, \(x,\)\)"):
        export(Net().eval(), tmp_path / "m.onnx")


def test_the_requested_opset_is_the_files(tmp_path):
    """Opset 18 and 20 are written as asked."""
    for opset in (18, 20):
        got = export(nn.Linear(3, 2).eval(), tmp_path / "m.onnx", (torch.randn(2, 3),), opset=opset)
        assert onnx.load(got.path).opset_import[0].version == got.opset == opset


def test_a_model_in_training_mode_is_exported_in_eval_mode_and_left_alone(tmp_path):
    """BatchNorm uses its running statistics in the file; the user's model stays in training."""
    model = Net().train()
    model.norm.running_mean.fill_(0.5)

    got = export(model, tmp_path / "m.onnx", (torch.randn(2, 1, 8, 8),))

    assert model.norm.training
    feeds = _floats("image", shape=(1, 8, 8))
    assert _agree(got.path, model.eval(), feeds, lambda m, f: (m(f["image"]),)) <= 1e-4


def test_large_weights_go_into_a_file_beside(tmp_path, monkeypatch):
    """Past protobuf's limit (here 100 bytes) the weights have their own file, and count."""
    monkeypatch.setattr(exporting_onnx, "_SINGLE_FILE_BYTES", 100)
    model = nn.Linear(64, 64).eval()

    got = export(model, tmp_path / "m.onnx", (torch.randn(2, 64),))

    assert got.data_path == tmp_path / "m.onnx.data"
    assert got.size_bytes == got.path.stat().st_size + got.data_path.stat().st_size
    feeds = _floats("input", shape=(64,))
    assert _agree(got.path, model, feeds, lambda m, f: (m(f["input"]),)) <= 1e-4


def test_a_file_of_their_own_for_the_weights_on_demand(tmp_path):
    """external_data=True moves the weights out of a small model's file; the numbers are the same.

    Without, and for weights too small to be worth it, there is one file.
    """
    model = nn.Linear(64, 64).eval()
    x = torch.randn(2, 64)

    one = export(model, tmp_path / "one.onnx", (x,))
    two = export(model, tmp_path / "two.onnx", (x,), external_data=True)
    tiny = export(nn.Linear(3, 2).eval(), tmp_path / "t.onnx", (x[:, :3],), external_data=True)

    assert (one.data_path, two.data_path) == (None, tmp_path / "two.onnx.data")
    assert tiny.data_path is None
    assert {p.name for p in tmp_path.iterdir()} == {
        "one.onnx",
        "two.onnx",
        "two.onnx.data",
        "t.onnx",
    }
    assert two.data_path.stat().st_size >= 64 * 64 * 4 > two.path.stat().st_size
    assert two.size_bytes == two.path.stat().st_size + two.data_path.stat().st_size
    feeds = _floats("input", shape=(64,))
    assert _agree(two.path, model, feeds, lambda m, f: (m(f["input"]),)) <= 1e-4


def test_more_than_a_file_holds_is_not_forced_into_one(tmp_path, monkeypatch):
    """external_data=False is refused where the weights are beyond the limit (here 100 bytes)."""
    monkeypatch.setattr(exporting_onnx, "_SINGLE_FILE_BYTES", 100)

    with pytest.raises(UsageError, match=r"m\.onnx: expected weights of less than 100 bytes"):
        export(
            nn.Linear(9, 9).eval(), tmp_path / "m.onnx", (torch.ones(2, 9),), external_data=False
        )

    assert list(tmp_path.iterdir()) == []


def test_exporting_prints_and_warns_nothing(tmp_path, capfd, caplog):
    """The exporter's chatter (here: an output of None) never reaches the terminal."""
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        example = {"x": torch.randn(2, 5), "scale": torch.randn(2, 1)}
        export(FromDict().eval(), tmp_path / "m.onnx", (example,))

    assert capfd.readouterr() == ("", "")


@torch.library.custom_op("edgeprune_tests::unheard_of", mutates_args=())
def unheard_of(x: torch.Tensor) -> torch.Tensor:
    """An op that no exporter knows."""
    return x * 2


@unheard_of.register_fake
def _(x):
    return torch.empty_like(x)


def test_an_op_without_onnx_form_is_named_with_its_line(tmp_path):
    """The error says node, source line and op, and nothing is left on disk."""

    class Unheard(nn.Module):
        def forward(self, x):
            return unheard_of(x.relu())

    with pytest.raises(ModelNotSupported, match="unheard_of") as caught:
        export(Unheard().eval(), tmp_path / "m.onnx", (torch.randn(2, 3),))

    assert "test_onnx.py:" in str(caught.value)
    assert caught.value.where == "unheard_of"
    assert list(tmp_path.iterdir()) == []


def test_an_op_that_needs_the_batch_as_a_number_says_to_fix_it(tmp_path):
    """A convolution with a group a sample: refused with the remedy, and the remedy holds."""

    class GroupASample(nn.Module):
        def forward(self, x, w):
            merged = x.reshape(1, -1, *x.shape[2:])
            return nn.functional.conv2d(merged, w.flatten(0, 1), groups=x.shape[0]).unflatten(
                1, (x.shape[0], -1)
            )

    example = (torch.randn(2, 3, 8, 8), torch.randn(2, 4, 3, 3, 3))
    with pytest.raises(ModelNotSupported, match="Set dynamic_batch=False"):
        export(GroupASample().eval(), tmp_path / "m.onnx", example)

    made = export(GroupASample().eval(), tmp_path / "m.onnx", example, dynamic_batch=False)

    assert made.outputs[0].shape == (1, 2, 4, 6, 6)


def test_a_constant_output_that_is_no_tensor_is_refused(tmp_path):
    """An ONNX file gives tensors only; returning a Python number is said, not dropped."""

    class Number(nn.Module):
        def forward(self, x):
            return x * 2, 3

    with pytest.raises(ModelNotSupported, match="exporting at"):
        export(Number().eval(), tmp_path / "m.onnx", (torch.randn(2, 3),))


def test_a_corrupt_file_is_refused_by_the_full_check(tmp_path):
    """A declared output shape that contradicts the graph passes a plain check, not the full one."""
    got = export(nn.Linear(3, 2).eval(), tmp_path / "m.onnx", (torch.randn(2, 3),))
    model = onnx.load(got.path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, tmp_path / "wrong.onnx")
    (tmp_path / "cut.onnx").write_bytes(got.path.read_bytes()[:50])
    onnx.checker.check_model(str(tmp_path / "wrong.onnx"))

    for name in ("wrong.onnx", "cut.onnx"):
        with pytest.raises(ModelNotSupported, match=rf"checking the export at {name}"):
            check_file(tmp_path / name)


def test_a_file_that_computes_another_function_is_never_written(tmp_path, monkeypatch):
    """An exporter that gets one weight wrong is caught; the old file stays."""
    real = exporting_onnx.translate

    def wrong(captured, opset):
        model = real(captured, opset)
        value = model.graph.initializers["head.weight"]
        import onnx_ir as ir

        value.const_value = ir.tensor(-value.const_value.numpy(), name="head.weight")
        return model

    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(exporting_onnx, "translate", wrong)

    with pytest.raises(ModelNotSupported, match=r"output output of m\.onnx.*fault of the exporter"):
        export(Net().eval(), path, (torch.randn(2, 1, 8, 8),))

    assert path.read_bytes() == b"old"


def test_a_network_that_magnifies_rounding_is_not_the_exporters_fault(tmp_path):
    """Where torch's own float32 is far from float64, no file can be held against it."""

    class Chaos(nn.Module):
        def forward(self, x):
            y = x.sigmoid()
            for _ in range(60):  # the logistic map: an error doubles with each step
                y = 3.99 * y * (1.0 - y)
            return y

    with pytest.raises(ModelNotSupported, match="magnifies rounding"):
        export(Chaos().eval(), tmp_path / "m.onnx", (torch.randn(2, 50),))

    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_the_users_mistake(tmp_path):
    """Said before the model is touched."""
    with pytest.raises(UsageError, match="expected a folder"):
        export(Net(), tmp_path / "none" / "m.onnx", (torch.randn(2, 1, 8, 8),))


def test_an_artifact_is_frozen(tmp_path):
    """Facts do not change under a reader."""
    got = export(nn.Linear(3, 2).eval(), tmp_path / "m.onnx", (torch.randn(2, 3),))

    assert isinstance(got, Artifact)
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.opset = 1


class Viewed(nn.Module):
    """A view after a transposition, as the layout of attention's result allows."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(64, 64)
        self.o = nn.Linear(64, 64)
        self.bias = nn.Embedding(32, 4)

    def forward(self, x):
        heads = self.q(x).view(x.shape[0], 16, -1, 16).transpose(1, 2)
        places = torch.arange(16) + torch.arange(16)[:, None]
        bias = self.bias(places).permute(2, 0, 1)[None].contiguous()
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads, bias)
        return self.o(mixed.transpose(1, 2).reshape(x.shape[0], 16, -1))


def test_a_view_may_rest_on_the_layout_of_attentions_result(tmp_path):
    """What torch computes without a copy, the file computes too."""
    model = Viewed().eval()
    export(model, tmp_path / "m.onnx", (torch.randn(2, 16, 64),))

    def feeds(rng, batch):
        return {"x": rng.standard_normal((batch, 16, 64), dtype=np.float32)}

    assert _agree(tmp_path / "m.onnx", model, feeds, lambda m, f: (m(**f),)) < 1e-4


class Blocks(nn.Module):
    """Attention inside blocks of tokens, (batch, heads, blocks, tokens, dim), or without heads."""

    def __init__(self, shape, mask):
        super().__init__()
        self.shape = shape
        self.q, self.o = nn.Linear(16, 48), nn.Linear(16, 4)
        self.register_buffer("mask", mask)

    def forward(self, x):
        q, k, v = self.q(x).chunk(3, -1)
        q, k, v = (part.reshape(x.shape[0], *self.shape) for part in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, self.mask)
        # Without heads nothing is left to a reshape: the shape itself has to be right.
        return self.o(mixed if mixed.dim() == 3 else mixed.reshape(x.shape))


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((2, 3, 4, 8), None),
        ((2, 3, 4, 8), torch.randn(4, 4)),
        ((2, 3, 4, 8), torch.randn(3, 4, 4)),
        ((2, 3, 4, 8), torch.randn(1, 2, 1, 4, 4)),
        ((12, 16), None),
        ((12, 16), torch.randn(1, 12, 12)),
    ],
)
def test_attention_of_more_or_fewer_dims_than_four(tmp_path, shape, mask):
    """ONNX has attention in four dims: the others are told as such, masks included."""
    model = Blocks(shape, mask).eval()
    export(model, tmp_path / "m.onnx", (torch.randn(2, 12, 16),))

    def feeds(rng, batch):
        return {"x": rng.standard_normal((batch, 12, 16), dtype=np.float32)}

    assert _agree(tmp_path / "m.onnx", model, feeds, lambda m, f: (m(**f),)) < 1e-4


def test_a_squeeze_of_a_dim_that_is_not_one_does_nothing(tmp_path):
    """In torch it is allowed and leaves the tensor as it is; ONNX has no such squeeze."""

    class Squeezed(nn.Module):
        def forward(self, x):
            return x.squeeze(1).tanh() + x.unsqueeze(1).squeeze(1)

    model = Squeezed().eval()
    export(model, tmp_path / "m.onnx", (torch.randn(2, 3, 4),))

    def feeds(rng, batch):
        return {"x": rng.standard_normal((batch, 3, 4), dtype=np.float32)}

    assert _agree(tmp_path / "m.onnx", model, feeds, lambda m, f: (m(**f),)) < 1e-4


def test_an_output_that_is_no_tensor_is_named(tmp_path):
    """A number beside the scores has no place in ONNX: it is named, and no operator is blamed."""

    class WithCount(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            return {"y": self.a(x), "count": 3}

    with pytest.raises(ModelNotSupported, match="expected tensors, got the constant 3"):
        export(WithCount().eval(), tmp_path / "m.onnx", (torch.randn(2, 4),))


def test_parts_as_long_as_the_batch(tmp_path):
    """Two batches behind each other are taken apart again, whatever the size of the batch."""

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            y = self.a(x)
            one, two = torch.cat([y, 2 * y]).split(x.shape[0])
            return self.b(one.tanh() * two)

    model = Pairs().eval()
    got = export(model, tmp_path / "m.onnx", (torch.randn(2, 6),))

    def feeds(dice, batch):
        return {"x": dice.standard_normal((batch, 6)).astype(np.float32)}

    assert got.inputs[0].shape == ("batch", 6)
    assert _agree(got.path, model, feeds, lambda m, f: (m(f["x"]),)) <= 1e-4


class Formless(nn.Module):
    """A layer of 4 features, then an operator that torch.onnx has no form of."""

    def __init__(self, last):
        super().__init__()
        self.a = nn.Linear(6, 4)
        self.last = last

    def forward(self, x):
        return self.last(self.a(x))


@pytest.mark.parametrize(
    "last",
    [
        lambda y: y.cumprod(1),
        lambda y: y.cumprod(2),
        lambda y: torch.cdist(y, y[:, :2] * 2),
        lambda y: torch.cdist(y, y[:, :2] * 2, p=1.0),
    ],
    ids=["cumprod of rows", "cumprod", "distances", "distances of order 1"],
)
def test_operators_without_a_form_in_torch_get_one(last, tmp_path):
    """Running products (volume rendering) and distances between points reach ONNX."""
    model = Formless(last).eval()
    got = export(model, tmp_path / "m.onnx", (torch.randn(2, 5, 6),))

    def feeds(dice, batch):
        return {"x": dice.standard_normal((batch, 5, 6)).astype(np.float32)}

    assert _agree(got.path, model, feeds, lambda m, f: (m(f["x"]),)) <= 1e-4


def test_a_distance_of_another_order_is_refused(tmp_path):
    """What has no form names the operator and says which there are."""
    model = Formless(lambda y: torch.cdist(y, y * 2, p=3.0)).eval()

    with pytest.raises(ModelNotSupported, match="distances of order 1 or 2, got 3"):
        export(model, tmp_path / "m.onnx", (torch.randn(2, 5, 6),))
