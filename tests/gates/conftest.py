"""ONNX models small enough to compute by hand, and scripted paired times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.measure import PairedSamples, Samples, Settings, machine_state

PairsMaker = Callable[..., PairedSamples]
LinearMaker = Callable[..., Path]


def _samples(times_ms: Sequence[float]) -> Samples:
    return Samples(
        model_sha256="0",
        times_ms=tuple(times_ms),
        load_ms=1.0,
        first_ms=1.0,
        peak_rss_mib=1.0,
        onnxruntime="0",
    )


@pytest.fixture
def make_pairs() -> PairsMaker:
    """Paired samples from one time a process, each repeated `runs` times."""

    def make(
        dense_ms: Sequence[float], pruned_ms: Sequence[float], runs: int = 64
    ) -> PairedSamples:
        state = machine_state()
        return PairedSamples(
            baseline=tuple(_samples([time_ms] * runs) for time_ms in dense_ms),
            candidate=tuple(_samples([time_ms] * runs) for time_ms in pruned_ms),
            baseline_first=tuple(index % 2 == 0 for index in range(len(dense_ms))),
            settings=Settings(),
            threads=1,
            batch=1,
            before=state,
            after=state,
        )

    return make


@pytest.fixture
def make_linear(tmp_path: Path) -> LinearMaker:
    """Write an ONNX file that computes y = x @ weight, x (batch, in), weight (in, out)."""

    def make(
        weight: np.ndarray,
        name: str = "linear.onnx",
        batch: int | str = "batch",
        external: str | None = None,
    ) -> Path:
        rows, columns = weight.shape
        tensor = numpy_helper.from_array(weight.astype(np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, rows])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, columns])],
            [tensor],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(
            model,
            tmp_path / name,
            save_as_external_data=external is not None,
            location=external,
            size_threshold=0,
        )
        return tmp_path / name

    return make
