"""ONNX forms of operators that torch.onnx has none of."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import onnx_ir as ir
import torch


def forms() -> dict[Callable[..., object], Callable[..., object]]:
    """What to hand to torch.onnx as `custom_translation_table`: of packages that are imported."""
    grouped = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return {} if grouped is None else {grouped.default: grouped_product}


def grouped_product(x: ir.Value, weight: ir.Value, ends: ir.Value) -> object:
    """Rows of x (rows, in), sorted by expert, each through its matrix of weight (experts, in, out).

    ends (experts,): where the rows of each expert end; rows after the last are 0. One product an
    expert, of as many rows as it got.
    """
    # Imported here, as torch.onnx does it; typed for tensors, not for values of a graph.
    op = importlib.import_module("onnxscript").opset18
    if weight.shape is None or not isinstance(count := weight.shape[0], int):
        raise ValueError(f"expected a number of experts, got shape {weight.shape}")
    places = op.Cast(ends, to=ir.DataType.INT64)
    start = op.Constant(value_ints=[0])
    parts = []
    for expert in range(count):
        end = op.Slice(places, [expert], [expert + 1], [0])
        matrix = op.Gather(weight, op.Constant(value_int=expert), axis=0)
        parts.append(op.MatMul(op.Slice(x, start, end, [0]), matrix))
        start = end
    left = op.Sub(op.Shape(x, start=0, end=1), start)
    rest = op.ConstantOfShape(op.Concat(left, op.Shape(weight, start=2, end=3), axis=0))
    return op.Concat(*parts, op.CastLike(rest, x), axis=0)
