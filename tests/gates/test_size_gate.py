"""The size gate: bytes as the file system counts them, external data included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.errors import UsageError
from edgeprune.gates import SizeEvidence, judge, model_bytes


def test_a_self_contained_file_is_its_own_size(make_linear) -> None:
    """Without external data the size is the file's."""
    path = make_linear(np.ones((8, 8)))

    assert model_bytes(path) == path.stat().st_size


def test_external_data_is_counted(make_linear) -> None:
    """Weights in a second file count, once."""
    path = make_linear(np.ones((64, 64)), external="weights.bin")
    weights = path.parent / "weights.bin"

    assert weights.stat().st_size >= 64 * 64 * 4
    assert model_bytes(path) == path.stat().st_size + weights.stat().st_size


def test_external_data_of_a_sub_graph_is_counted(tmp_path: Path) -> None:
    """A constant inside a branch of an If may live outside the file too."""
    (tmp_path / "branch.bin").write_bytes(b"\0" * 4096)
    constant = TensorProto(dims=[1024], data_type=TensorProto.FLOAT, name="k")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="branch.bin")
    out = helper.make_tensor_value_info("k", TensorProto.FLOAT, [1024])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=constant)], "branch", [], [out]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1024])],
    )
    path = tmp_path / "if.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())

    assert model_bytes(path) == path.stat().st_size + 4096


def test_a_missing_weights_file_is_named(make_linear) -> None:
    """A model without the file that holds its weights is refused, not counted as small."""
    path = make_linear(np.ones((64, 64)), external="weights.bin")
    (path.parent / "weights.bin").unlink()

    with pytest.raises(UsageError, match=r"expected its weights in .*weights\.bin, got no such"):
        model_bytes(path)


def test_a_file_that_is_not_onnx_is_named(tmp_path: Path) -> None:
    """Neither a missing file nor another format has a size as a model."""
    (tmp_path / "text.onnx").write_text("hello", encoding="utf-8")

    with pytest.raises(UsageError, match=r"text\.onnx: expected an ONNX file, got DecodeError"):
        model_bytes(tmp_path / "text.onnx")
    with pytest.raises(UsageError, match=r"none\.onnx: expected an ONNX file, got No such file"):
        model_bytes(tmp_path / "none.onnx")


@pytest.mark.parametrize(("limit_mib", "outcome"), [(1.0, "pass"), (0.999, "fail")])
def test_a_limit_in_mib_is_inclusive(limit_mib: float, outcome: str) -> None:
    """1,048,576 bytes are 1 MiB: within 1 MiB, beyond anything less."""
    (verdict,) = judge(SizeEvidence(pruned_bytes=2**20, limit_mib=limit_mib))

    assert (verdict.gate, verdict.outcome, verdict.observed) == ("size", outcome, 1.0)
    assert "(1048576 bytes, external data included)" in verdict.line()


def test_a_ratio_is_build_over_dense() -> None:
    """300 of 1,000 bytes is a ratio of 0.3."""
    pair = {"pruned_bytes": 300, "dense_bytes": 1000}

    (within,) = judge(SizeEvidence(**pair, largest_ratio=0.3))
    (beyond,) = judge(SizeEvidence(**pair, largest_ratio=0.29))

    assert within.line() == "size_ratio PASS: 0.3x <= 0.3x (300 of 1000 bytes)"
    assert (beyond.outcome, beyond.unit) == ("fail", "x")


def test_a_ratio_without_a_baseline_is_inconclusive() -> None:
    """With no dense file there is no ratio to judge."""
    (verdict,) = judge(SizeEvidence(pruned_bytes=300, largest_ratio=0.3))

    assert verdict.line() == (
        "size_ratio INCONCLUSIVE: a ratio needs the dense model's size, got none. Give a baseline."
    )


def test_no_limit_is_a_mistake() -> None:
    """Nothing to judge against is refused."""
    with pytest.raises(UsageError, match="expected limit_mib or largest_ratio, got neither"):
        SizeEvidence(pruned_bytes=1)


def test_onnx_itself_agrees_that_the_fixture_is_external(make_linear) -> None:
    """The fixture does what its name says: without the loader's help the weights are not there."""
    model = onnx.load(make_linear(np.ones((4, 4)), external="w.bin"), load_external_data=False)

    assert model.graph.initializer[0].data_location == TensorProto.EXTERNAL
