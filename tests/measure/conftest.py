"""A tiny ONNX model, targets and settings for the tests of measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.measure import Settings
from edgeprune.targets import Target, load_target

ModelMaker = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> ModelMaker:
    """Write an ONNX file that computes y = x + x for an input of any shape and dtype."""

    def make(
        name: str = "model.onnx",
        shape: tuple[int | str, ...] = ("batch", 3),
        dtype: int = TensorProto.FLOAT,
    ) -> Path:
        # ONNX Runtime adds no strings; it only hands them on.
        operator, operands = ("Add", ["x", "x"])
        if dtype == TensorProto.STRING:
            operator, operands = ("Identity", ["x"])
        graph = helper.make_graph(
            [helper.make_node(operator, operands, ["y"])],
            "double",
            [helper.make_tensor_value_info("x", dtype, shape)],
            [helper.make_tensor_value_info("y", dtype, shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def local() -> Target:
    """The shipped target of this machine."""
    return load_target("local")


@pytest.fixture
def brief() -> Settings:
    """Little work for a real process; nothing is claimed about its times."""
    return Settings(
        runs=5, least_runs=2, seconds=5.0, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
    )
