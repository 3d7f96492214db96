"""ONNX operators on numbers that are known while the graph is read: arithmetic on shapes."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable

import numpy as np
import torch

from edgeprune.recipe.onnx_call import Call, Number, Numbers, Value, as_numbers, number_op

_LARGEST = 4096
"""Elements of a Range or ConstantOfShape that are written out; larger ones become tensors."""

_DTYPES = {1: "float32", 3: "int8", 2: "uint8", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}
_DTYPES |= {11: "float64"}


def dtype_of(call: Call, default: str = "") -> str:
    """The dtype that the attribute `to` or `dtype` of a node names."""
    name = "to" if "to" in call.step.attributes else "dtype"
    if name not in call.step.attributes and default:
        return default
    number = call.integer(name, 0)
    if number not in _DTYPES:
        raise call.step.refused(f"a dtype of {', '.join(_DTYPES.values())}", f"type {number}")
    return _DTYPES[number]


@number_op("Shape")
def shape(call: Call) -> Value:
    """Sizes of a tensor; the batch stays symbolic."""
    value = call.value(0)
    sizes = list(value.shape) if isinstance(value, torch.Tensor) else list(value.array.shape)
    start = call.integer("start", 0)
    return as_numbers(sizes[start : call.integer("end", len(sizes))], "int64")


@number_op("Size")
def size(call: Call) -> Value:
    """How many elements numbers have."""
    return as_numbers(_given(call, 0).array.size, "int64")


@number_op("Identity")
def identity(call: Call) -> Value:
    """The same numbers."""
    return call.value(0)


@number_op("Cast")
def cast_numbers(call: Call) -> Value:
    """Numbers of another type; a symbolic size is rounded as a size, towards zero."""
    dtype = dtype_of(call)
    to_float, to_bool = dtype.startswith("float"), dtype == "bool"

    def convert(value: Number) -> Number:
        if isinstance(value, torch.SymInt | torch.SymFloat):
            return torch.sym_float(value) if to_float else torch.sym_int(value)
        return bool(value) if to_bool else float(value) if to_float else int(value)

    return _each(convert, dtype, _given(call, 0))


@number_op("Gather")
def gather(call: Call) -> Value:
    """Numbers at fixed places."""
    places = np.array(_given(call, 1).array.tolist(), np.int64)
    data = _given(call, 0)
    taken = np.take(data.array, places, axis=call.integer("axis", 0))
    return _wrapped(taken, data.dtype)


@number_op("Concat")
def concat(call: Call) -> Value:
    """Lists of numbers, one after another."""
    parts = [_given(call, index) for index in range(len(call.values))]
    joined = np.concatenate([part.array for part in parts], axis=call.integer("axis", 0))
    return _wrapped(joined, parts[0].dtype)


@number_op("Slice")
def slice_numbers(call: Call) -> Value:
    """A part of a list of numbers."""
    data = _given(call, 0)
    starts, ends, axes, steps = slices(call, data.array.ndim)
    index = [slice(None)] * data.array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -data.array.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return _wrapped(data.array[tuple(index)], data.dtype)


def slices(call: Call, dims: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Starts, ends, axes (not negative) and steps, from inputs or, in old opsets, attributes."""
    if call.has(1):
        starts, ends = call.sizes(1), call.sizes(2)
        axes = call.sizes(3) if call.has(3) else list(range(len(starts)))
        steps = call.sizes(4) if call.has(4) else [1] * len(starts)
    else:
        starts, ends = call.integers("starts"), call.integers("ends")
        axes, steps = call.integers("axes", range(len(starts))), [1] * len(starts)
    return starts, ends, [axis % dims for axis in axes], steps


@number_op("Unsqueeze")
def unsqueeze(call: Call) -> Value:
    """New axes of size 1."""
    data = _given(call, 0)
    axes = call.axes() or []
    dims = data.array.ndim + len(axes)
    shape = list(data.array.shape)
    for axis in sorted(axis % dims for axis in axes):
        shape.insert(axis, 1)
    return _wrapped(data.array.reshape(shape), data.dtype)


@number_op("Squeeze")
def squeeze(call: Call) -> Value:
    """Axes of size 1 dropped."""
    data = _given(call, 0)
    axes = call.axes()
    return _wrapped(np.squeeze(data.array, None if axes is None else tuple(axes)), data.dtype)


@number_op("Reshape")
def reshape(call: Call) -> Value:
    """The same numbers in another shape."""
    data = _given(call, 0)
    sizes = [data.array.shape[i] if s == 0 else s for i, s in enumerate(call.sizes(1))]
    return _wrapped(data.array.reshape(sizes), data.dtype)


@number_op("Transpose")
def transpose(call: Call) -> Value:
    """Axes of numbers in another order."""
    data = _given(call, 0)
    return _wrapped(
        data.array.transpose(call.integers("perm", range(data.array.ndim)[::-1])), data.dtype
    )


@number_op("Range")
def arange(call: Call) -> Value:
    """start, start + step ... below the limit; a symbolic one becomes a tensor."""
    start, limit, step = (call.number(index, 0) for index in range(3))
    if all(isinstance(value, int) for value in (start, limit, step)):
        values = list(range(int(start), int(limit), int(step)))
        if len(values) <= _LARGEST:
            return as_numbers(values, "int64")
    return torch.arange(start, limit, step)


@number_op("ConstantOfShape")
def constant_of_shape(call: Call) -> Value:
    """One number everywhere; a tensor where it is large or its shape symbolic."""
    fill = call.constant("value")
    value: Number = 0.0 if fill is None else fill.reshape(-1)[0].item()
    dtype = "float32" if fill is None else str(fill.dtype)
    sizes = call.sizes(0)
    if _given(call, 0).is_fixed and len(sizes) <= 1 and math.prod(sizes) <= _LARGEST:
        return _wrapped(np.full(tuple(sizes), value, object), dtype)
    return torch.full(sizes, value, dtype=getattr(torch, dtype))


@number_op("Expand")
def expand(call: Call) -> Value:
    """Numbers repeated to a shape; a tensor where that shape is symbolic."""
    data, sizes = _given(call, 0), call.sizes(1)
    if _given(call, 1).is_fixed and math.prod(sizes) <= _LARGEST:
        shape = np.broadcast_shapes(data.array.shape, tuple(sizes))
        return _wrapped(np.broadcast_to(data.array, shape).copy(), data.dtype)
    return call.tensor(0).expand(sizes)


@number_op("Where")
def where(call: Call) -> Value:
    """One of two numbers, place by place."""
    condition, yes, no = (_given(call, index) for index in range(3))

    def choose(test: Number, one: Number, other: Number) -> Number:
        return one if test else other

    return _each(choose, yes.dtype, condition, yes, no)


@number_op("ReduceProd")
def product(call: Call) -> Value:
    """The product of all numbers, such as the elements of a shape."""
    data = _given(call, 0)
    axes = call.axes()
    keep = bool(call.integer("keepdims", 1))
    if axes is not None and len(axes) not in (0, data.array.ndim):
        raise call.step.refused("a product over all axes", str(axes))
    one: Number = 1
    total: Number = functools.reduce(operator.mul, data.array.reshape(-1).tolist(), one)
    if keep:
        return _wrapped(np.full([1] * data.array.ndim, total, object), data.dtype)
    return as_numbers(total, data.dtype)


def _divide(call: Call, one: Number, other: Number) -> Number:
    """ONNX divides integers towards zero."""
    if _given(call, 0).dtype.startswith("float"):
        return one / other
    if isinstance(one, int) and isinstance(other, int):
        return int(math.copysign(abs(one) // abs(other), one * other))
    return one // other  # sizes are not negative


def _remainder(call: Call, one: Number, other: Number) -> Number:
    if call.integer("fmod", 0):
        raise call.step.refused("fmod = 0 for sizes", "1")
    return one % other


_TWO: dict[str, Callable[[Number, Number], Number]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Pow": operator.pow,
    "Max": max,
    "Min": min,
}
_COMPARED: dict[str, Callable[[Number, Number], Number]] = {
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "And": lambda one, other: bool(one) and bool(other),
    "Or": lambda one, other: bool(one) or bool(other),
}
_ONE: dict[str, Callable[[Number], Number]] = {
    "Ceil": math.ceil,
    "Floor": math.floor,
    "Neg": lambda value: -value,
    "Not": operator.not_,
    "Sqrt": torch.sym_sqrt if hasattr(torch, "sym_sqrt") else math.sqrt,
}


@number_op(*_TWO)
def arithmetic(call: Call) -> Value:
    """Two operands (Max and Min: any number), broadcast."""
    parts = [_given(call, index) for index in range(len(call.values))]
    result = parts[0]
    for part in parts[1:]:
        result = _each(_TWO[call.step.op], result.dtype, result, part)
    return result


@number_op("Div")
def divide(call: Call) -> Value:
    """A quotient; of integers, towards zero."""
    one, other = _given(call, 0), _given(call, 1)
    return _each(lambda a, b: _divide(call, a, b), one.dtype, one, other)


@number_op("Mod")
def remainder(call: Call) -> Value:
    """What a division leaves, with the divisor's sign."""
    one, other = _given(call, 0), _given(call, 1)
    return _each(lambda a, b: _remainder(call, a, b), one.dtype, one, other)


@number_op(*_COMPARED)
def compare(call: Call) -> Value:
    """Two operands compared, broadcast."""
    return _each(_COMPARED[call.step.op], "bool", _given(call, 0), _given(call, 1))


@number_op(*_ONE)
def one_operand(call: Call) -> Value:
    """A function of each number."""
    data = _given(call, 0)
    return _each(_ONE[call.step.op], "bool" if call.step.op == "Not" else data.dtype, data)


def _given(call: Call, index: int) -> Numbers:
    value = call.value(index)
    if not isinstance(value, Numbers):
        raise call.step.refused(f"input {index} to be known without data", "a tensor")
    return value


def _wrapped(array: object, dtype: str) -> Numbers:
    if isinstance(array, np.ndarray) and array.dtype == object:
        return Numbers(array=array, dtype=dtype)
    return as_numbers(array, dtype)


def _each(function: Callable[..., Number], dtype: str, *parts: Numbers) -> Numbers:
    """The function at every place of the broadcast parts."""
    arrays = np.broadcast_arrays(*(part.array for part in parts))
    result = np.empty(arrays[0].shape, object)
    for place in np.ndindex(result.shape):
        result[place] = function(*(array[place] for array in arrays))
    return Numbers(array=result, dtype=dtype)
