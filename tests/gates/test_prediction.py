"""Running an ONNX file over a split, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeprune.errors import DataError, UsageError
from edgeprune.gates import predict

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((6, 3)).astype(np.float32)
X = RNG.standard_normal((7, 6)).astype(np.float32)
LABELS = np.arange(7) % 3


def test_outputs_of_uneven_batches_are_joined_in_order(make_linear) -> None:
    """Batches of 4 and 3 samples give the seven rows that NumPy gives, labels alongside."""
    seen: list[int] = []
    split = [(X[:4], LABELS[:4]), (X[4:], LABELS[4:])]

    found = predict(make_linear(WEIGHT), split, threads=1, progress=seen.append)

    assert isinstance(found.outputs, np.ndarray)
    np.testing.assert_allclose(found.outputs, X @ WEIGHT, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.targets, LABELS)
    assert (found.names, found.samples, seen) == (("y",), 7, [4, 7])


@pytest.mark.parametrize("wrap", [lambda x: (x,), lambda x: {"x": x}, lambda x: [x]])
def test_inputs_may_be_a_tuple_a_dict_or_a_list(make_linear, wrap) -> None:
    """Every way to write one input gives the same outputs."""
    path = make_linear(WEIGHT)

    bare = predict(path, [(X, None)], threads=1)
    wrapped = predict(path, [(wrap(X), None)], threads=1)

    np.testing.assert_array_equal(bare.outputs, wrapped.outputs)
    assert wrapped.targets is None


def test_tensors_are_taken_without_importing_torch(make_linear) -> None:
    """Anything that detaches to an array is a tensor."""

    class Tensor:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def detach(self) -> Tensor:
            return self

        def cpu(self) -> Tensor:
            return self

        def __array__(self, dtype=None, copy=None) -> np.ndarray:
            return self.array

    path = make_linear(WEIGHT)
    found = predict(path, [(Tensor(X), Tensor(LABELS))], threads=1)

    np.testing.assert_array_equal(found.outputs, predict(path, [(X, None)], threads=1).outputs)
    np.testing.assert_array_equal(found.targets, LABELS)


def test_doubles_are_rounded_to_the_models_precision(make_linear) -> None:
    """float64 data feed a float32 model; a change of kind is refused."""
    path = make_linear(WEIGHT)

    doubles = predict(path, [(X.astype(np.float64), None)], threads=1)
    assert isinstance(doubles.outputs, np.ndarray)
    assert doubles.outputs.dtype == np.float32
    with pytest.raises(DataError, match=r"input 'x': expected float32, got complex64"):
        predict(path, [(X.astype(np.complex64), None)], threads=1)


def test_several_outputs_are_a_tuple(tmp_path) -> None:
    """A model with two outputs gives a tuple in the model's order."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 6]) for n in ("x", "n", "a")]
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Abs", ["x"], ["a"])]
    graph = helper.make_graph(nodes, "two", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "two.onnx").write_bytes(model.SerializeToString())

    found = predict(tmp_path / "two.onnx", [(X, None)], threads=1)

    assert found.names == ("n", "a")
    np.testing.assert_array_equal(found.outputs[0], -X)
    np.testing.assert_array_equal(found.outputs[1], np.abs(X))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ([], "expected at least one batch, got none"),
        ([(X, LABELS), (X, None)], "expected targets in all 2 batches or in none, got 1"),
        ([(X, LABELS[:3])], "expected 7 targets, one a sample, got 3"),
        ([({"z": X}, None)], "at batch 0: expected inputs x, got z"),
        ([((X, X), None)], "at batch 0: expected inputs x, got another number of them"),
        ([(X[:, :5], None)], "expected inputs that fit its shapes, got x (7, 5) float32"),
        ([(X[:0], None)], "expected a batch of at least one sample, got shape (0, 6)"),
    ],
)
def test_batches_that_do_not_fit_are_named(make_linear, split, expected: str) -> None:
    """A DataError names the batch and the input, and says what was expected and what came."""
    with pytest.raises(DataError) as caught:
        predict(make_linear(WEIGHT), split, threads=1)
    assert expected in str(caught.value)


def test_a_fixed_batch_is_told_to_be_dynamic(make_linear) -> None:
    """A model exported for batches of 2 cannot take 7 samples, and the remedy is named."""
    with pytest.raises(DataError, match="Export with a dynamic batch and check the data"):
        predict(make_linear(WEIGHT, batch=2), [(X, None)], threads=1)


def test_a_broken_model_is_refused(tmp_path) -> None:
    """A file that ONNX Runtime cannot load is a usage error with its path."""
    (tmp_path / "bad.onnx").write_bytes(b"no model")

    with pytest.raises(UsageError, match=r"loading the model at .*bad\.onnx"):
        predict(tmp_path / "bad.onnx", [(X, None)], threads=1)


def _identity(path, kind):
    ports = [helper.make_tensor_value_info(n, kind, ["b", 1]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "same", ports[:1], ports[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "value", "dtype", "got"),
    [
        (
            TensorProto.INT32,
            2**31,
            "int64",
            "int32, from -2147483648 to 2147483647, got 2147483648",
        ),
        (TensorProto.INT8, -129, "int64", "int8, from -128 to 127, got -129"),
        (TensorProto.INT64, 2**63, "uint64", "got 9223372036854775808"),
        (TensorProto.UINT8, 256, "uint16", "uint8, from 0 to 255, got 256"),
        (TensorProto.FLOAT, 1e39, "float64", "got 1e+39 (1 of 2 lie outside)"),
        (TensorProto.FLOAT16, 70000, "int64", "got 70000"),
    ],
)
def test_a_value_beyond_the_models_range_is_refused(tmp_path, kind, value, dtype, got):
    """Nothing wraps and nothing turns infinite, and NumPy's warning does not reach the user."""
    path = _identity(tmp_path / "same.onnx", kind)

    with pytest.raises(DataError) as caught:
        predict(path, [(np.array([[1], [value]], dtype), None)], threads=1)
    assert got in str(caught.value)
    fits = predict(path, [(np.array([[1], [100]], dtype), None)], threads=1)
    assert np.asarray(fits.outputs).ravel().tolist() == [1, 100]
