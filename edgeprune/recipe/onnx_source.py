"""An ONNX file as plain data: its steps, its constants, its inputs; what cannot be read is refused.

Nothing here knows torch. The file may be hostile: `onnx_file` opens it, and only tensors of plain
numbers are decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeprune.errors import ModelNotSupported, UsageError
from edgeprune.recipe.onnx_file import opset_of, read_model

Array: TypeAlias = NDArray[np.generic]
Attribute: TypeAlias = "int | float | str | tuple[int, ...] | tuple[float, ...] | Array"

_DOMAINS = ("", "ai.onnx")
_DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
_OLDEST_OPSET = 7
"""Before it, broadcasting had an `axis` attribute of its own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One node: operator, name for people, names of the values it reads and makes.

    An input that is left out is `""`, as in ONNX. `opset` is that of the file.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    opset: int

    @property
    def place(self) -> str:
        """How an error or a pin calls the node: `Conv '/features.0/Conv'`."""
        return f"{self.op} {self.name!r}"

    def refused(self, expected: str, got: str, advice: str = "") -> ModelNotSupported:
        """The error that this node is not understood, with operator, name and opset."""
        advice = advice or "Export the model in another way, or start from its PyTorch code."
        return ModelNotSupported(
            f"importing at node {self.place} (opset {self.opset}): expected {expected}, got {got}. "
            f"{advice}",
            where=self.name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of the file: NumPy dtype, sizes; a str or None where the file leaves it open."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A whole file; `constants` are initializers and Constant nodes by the name of their value."""

    path: Path
    steps: tuple[Step, ...]
    constants: Mapping[str, Array]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    opset: int


def read_source(path: Path) -> Source:
    """Read a float model; its local functions are inlined, its external data loaded.

    Raises UsageError for a file that is missing, broken or reaches outside its folder, and
    ModelNotSupported for one that is quantized, half precision, or has control flow.
    """
    model = read_model(path)
    _require_float(model, path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
        _require_float(model, path)
    opset = opset_of(model)
    if opset < _OLDEST_OPSET:
        raise _refused(path, f"opset {_OLDEST_OPSET} or newer", f"opset {opset}")
    graph = model.graph
    constants = {tensor.name: _array(tensor, path) for tensor in graph.initializer}
    steps = []
    for index, node in enumerate(graph.node):
        step = _step(node, index, opset, path)
        if step.op == "Constant":
            constants[step.outputs[0]] = _constant(step)
        else:
            steps.append(step)
    inputs = tuple(_input(info, path) for info in graph.input if info.name not in constants)
    return Source(
        path=path,
        steps=tuple(_needed(steps, [info.name for info in graph.output])),
        constants=constants,
        inputs=inputs,
        outputs=tuple(info.name for info in graph.output),
        opset=opset,
    )


def _require_float(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what another representation of numbers or control flow needs, first of all."""
    for node in (*model.graph.node, *(n for f in model.functions for n in f.node)):
        if "QuantizeLinear" in node.op_type or node.op_type.startswith(
            ("QLinear", "MatMulInteger", "ConvInteger")
        ):
            raise _refused(
                path,
                "a float model",
                f"a quantized one ({node.op_type} {node.name!r})",
                "Prune the float model, then quantize the result.",
            )
        if node.op_type in _CONTROL:
            raise _refused(
                path,
                "one fixed sequence of operators",
                f"{node.op_type} {node.name!r}, whose branch or count depends on data",
            )
    if model.graph.sparse_initializer:
        raise _refused(path, "dense weights", "sparse ones")


def _array(tensor: onnx.TensorProto, path: Path) -> Array:
    """The numbers of a tensor; external data is below the file's folder, as was checked."""
    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    if dtype not in _DTYPES:
        raise _refused(
            path,
            f"tensors of {', '.join(_DTYPES)}",
            f"{kind} in {tensor.name!r}",
            "Export the float32 model.",
        )
    try:
        return np.array(numpy_helper.to_array(tensor, base_dir=str(path.parent)))
    except Exception as error:  # a short file, a wrong length: onnx raises what it stumbles over
        raise UsageError(
            f"reading the model at {path}: expected the numbers of {tensor.name!r}, got "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}. Export it again.",
            where=str(path),
        ) from error


def _step(node: onnx.NodeProto, index: int, opset: int, path: Path) -> Step:
    name = node.name or (node.output[0] if node.output else f"node {index}")
    domain = "" if node.domain in _DOMAINS else f"{node.domain}."
    attributes = {a.name: _attribute(a, name, path) for a in node.attribute}
    return Step(
        op=domain + node.op_type,
        name=name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
        opset=opset,
    )


def _attribute(attribute: onnx.AttributeProto, node: str, path: Path) -> Attribute:
    kind = attribute.type
    if kind == onnx.AttributeProto.INT:
        return int(attribute.i)
    if kind == onnx.AttributeProto.FLOAT:
        return float(attribute.f)
    if kind == onnx.AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == onnx.AttributeProto.INTS:
        return tuple(int(value) for value in attribute.ints)
    if kind == onnx.AttributeProto.FLOATS:
        return tuple(float(value) for value in attribute.floats)
    if kind == onnx.AttributeProto.TENSOR:
        return _array(attribute.t, path)
    name = onnx.AttributeProto.AttributeType.Name(kind)
    raise _refused(
        path,
        "numbers, text or a tensor as attributes",
        f"{name} in {attribute.name!r} of node {node!r}",
    )


def _constant(step: Step) -> Array:
    for key, value in step.attributes.items():
        if key == "value" and isinstance(value, np.ndarray):
            return value
        if key in ("value_int", "value_ints"):
            return np.array(value, np.int64)
        if key in ("value_float", "value_floats"):
            return np.array(value, np.float32)
    raise step.refused("a constant of numbers", ", ".join(step.attributes) or "none")


def _input(info: onnx.ValueInfoProto, path: Path) -> Input:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise _refused(path, "inputs that are tensors of known rank", f"another in {info.name!r}")
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    if dtype not in _DTYPES:
        raise _refused(
            path,
            f"inputs of {', '.join(_DTYPES)}",
            f"{name} in {info.name!r}",
            "Export the float32 model.",
        )
    shape = tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or None
        for size in kind.shape.dim
    )
    return Input(name=info.name, dtype=dtype, shape=shape)


def _needed(steps: list[Step], outputs: Iterable[str]) -> list[Step]:
    """The steps that lead to an output, in their order: what nothing reads is not imported."""
    wanted, kept = set(outputs), []
    for step in reversed(steps):
        if wanted & set(step.outputs):
            kept.append(step)
            wanted |= set(step.inputs)
    return kept[::-1]


def _refused(path: Path, expected: str, got: str, advice: str = "") -> ModelNotSupported:
    advice = advice or "Export the model in another way, or start from its PyTorch code."
    return ModelNotSupported(
        f"importing at {path}: expected {expected}, got {got}. {advice}", where=str(path)
    )
