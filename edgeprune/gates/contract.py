"""The contract gate: a build takes and gives what the model that it replaces takes and gives.

Names, order, dtypes, ranks, fixed sizes and which axes are dynamic. The symbol of a dynamic axis is
a name for people and may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Verdict

_AXES_OF_IMAGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output: dtype as ONNX names it, a size per axis, None where it is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Inputs and outputs of a model, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractEvidence:
    """The interfaces of the model that is replaced and of the build."""

    gate: ClassVar[str] = "contract"

    baseline: Interface
    candidate: Interface


def interface_of(model: onnx.ModelProto) -> Interface:
    """Inputs (without weights that old files list among them) and outputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return Interface(
        inputs=tuple(_port(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_port(v) for v in model.graph.output),
    )


def _port(value: onnx.ValueInfoProto) -> Port:
    if not value.type.HasField("tensor_type"):
        return Port(name=value.name, dtype=str(value.type.WhichOneof("value")), shape=None)
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return Port(name=value.name, dtype=dtype, shape=None)
    shape = tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in tensor.shape.dim
    )
    return Port(name=value.name, dtype=dtype, shape=shape)


@gate("contract")
def judge_contract(evidence: ContractEvidence) -> tuple[Verdict, ...]:
    """One verdict `contract`: how many differences there are, each named; none is allowed."""
    found = [
        *_differences("input", evidence.baseline.inputs, evidence.candidate.inputs),
        *_differences("output", evidence.baseline.outputs, evidence.candidate.outputs),
    ]
    ports = len(evidence.baseline.inputs) + len(evidence.baseline.outputs)
    same = f"{ports} inputs and outputs with the baseline's names, order, dtypes and axes"
    return (
        Verdict(
            gate="contract",
            outcome="fail" if found else "pass",
            observed=float(len(found)),
            limit=0.0,
            unit="differences",
            interval=None,
            count=ports,
            why="; ".join(found) or same,
        ),
    )


def _differences(kind: str, baseline: tuple[Port, ...], candidate: tuple[Port, ...]) -> list[str]:
    before, after = [p.name for p in baseline], [p.name for p in candidate]
    found = [f"{kind} '{name}' is missing" for name in before if name not in after]
    found += [f"{kind} '{name}' is new" for name in after if name not in before]
    if not found and before != after:
        found.append(f"{kind}s come as {', '.join(after)}, expected {', '.join(before)}")
    by_name = {port.name: port for port in candidate}
    for port in baseline:
        if port.name in by_name:
            found += [f"{kind} '{port.name}' {what}" for what in _changes(port, by_name[port.name])]
    return found


def _changes(before: Port, after: Port) -> list[str]:
    found = []
    if before.dtype != after.dtype:
        found.append(f"is {after.dtype}, expected {before.dtype}")
    if before.shape is None or after.shape is None:
        return found if before.shape == after.shape else [*found, "has a shape in one file only"]
    if len(before.shape) != len(after.shape):
        return [*found, f"has {len(after.shape)} axes, expected {len(before.shape)}"]
    if _is_other_layout(before.shape, after.shape):
        return [
            *found,
            f"has the layout {_spelled(after.shape)}, expected {_spelled(before.shape)}",
        ]
    for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=True)):
        if old != new:
            found.append(f"axis {axis} is {_size(new)}, expected {_size(old)}")
    return found


def _is_other_layout(before: tuple[int | None, ...], after: tuple[int | None, ...]) -> bool:
    """NCHW for NHWC, or the other way round."""
    if len(before) != _AXES_OF_IMAGES or before == after:
        return False
    n, c, h, w = before
    return after in ((n, h, w, c), (n, w, c, h))


def _spelled(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def _size(size: int | None) -> str:
    return "dynamic" if size is None else f"fixed at {size}"
