"""Small ONNX files for the tests of the import, and what ONNX Runtime makes of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


def write(path: Path, nodes, inputs, outputs=1, constants=None, opset=20, domain=None) -> Path:
    """A file of these nodes; inputs by name as (dtype, shape), the outputs y, y1 ..."""
    names = ["y", *(f"y{index}" for index in range(1, outputs))]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(n, KINDS[kind], shape)
            for n, (kind, shape) in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in names],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1)] if domain else []
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    try:  # the checker wants the types of the outputs
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        inferred = model
    types = {info.name: info for info in inferred.graph.output}
    for info in model.graph.output:
        info.CopyFrom(types[info.name])
        if not info.type.HasField("tensor_type"):
            info.type.tensor_type.elem_type = TensorProto.FLOAT
            info.type.tensor_type.shape.SetInParent()
    onnx.save(model, path)
    return path


def write_script(model: nn.Module, x: torch.Tensor, path: Path, **options) -> Path:
    """What torch's TorchScript-based exporter writes, as many files in the world are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), path, dynamo=False, **options)
    return path


def ort(path: Path, *args: torch.Tensor) -> list[np.ndarray]:
    """The outputs of the file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, dict(zip(names, (x.numpy() for x in args), strict=True)))


def error(expected: np.ndarray, got: np.ndarray) -> float:
    """max |a - b| in units of the expected output's spread."""
    assert expected.shape == got.shape
    return float(np.abs(expected - got).max() / expected.std())
