"""ONNX forms of operators that torch.onnx has none of."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import onnx_ir as ir
import torch

aten = torch.ops.aten


def forms() -> dict[Callable[..., object], Callable[..., object]]:
    """What to hand to torch.onnx as `custom_translation_table`: of packages that are imported."""
    found: dict[Callable[..., object], Callable[..., object]] = {
        aten.cumprod.default: running_product,
        aten._cdist_forward.default: distances,
    }
    grouped = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return found if grouped is None else {**found, grouped.default: grouped_product}


def running_product(x: ir.Value, dim: int, dtype: int | None = None) -> object:
    """Product of all positions up to each one along `dim`: of x (..., n), an (n, n) table each.

    dtype: another one is refused with ValueError.
    """
    op = importlib.import_module("onnxscript").opset18
    if x.shape is None or dtype not in (None, -1):
        raise ValueError(f"expected a known rank and x's own dtype, got {x.shape} and {dtype}")
    axis = dim % len(x.shape)
    places = op.Range(0, op.Squeeze(op.Shape(x, start=axis, end=axis + 1)), 1)
    behind = list(range(1, len(x.shape) - axis))
    # (upto, place, 1 ...): whether a place is among those that are multiplied.
    upto = op.Unsqueeze(places, [1, *(1 + d for d in behind)])
    among = op.LessOrEqual(op.Unsqueeze(places, [0, *(1 + d for d in behind)]), upto)
    table = op.Where(among, op.Unsqueeze(x, [axis]), op.CastLike(1.0, x))
    return op.ReduceProd(table, [axis + 1], keepdims=0)


def distances(one: ir.Value, two: ir.Value, p: float, _mode: int | None = None) -> object:
    """one (..., n, width), two (..., m, width) -> (..., n, m), of order 1 or 2.

    ValueError for other orders.
    """
    op = importlib.import_module("onnxscript").opset18
    apart = op.Sub(op.Unsqueeze(one, [-2]), op.Unsqueeze(two, [-3]))
    if p == 2.0:
        return op.ReduceL2(apart, [-1], keepdims=0)
    if p == 1.0:
        return op.ReduceL1(apart, [-1], keepdims=0)
    raise ValueError(f"expected distances of order 1 or 2, got {p}")


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
