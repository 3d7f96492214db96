"""Descriptions of example inputs, as text: `2x3x224x224`, `2x128:int64`, several with commas."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from edgeprune.errors import UsageError

DType: TypeAlias = Literal["float32", "float64", "float16", "int64", "int32", "bool"]
DTYPES: tuple[str, ...] = get_args(DType)

_SHAPE = re.compile(r"[0-9]+(x[0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input tensor: its shape, batch first, and its dtype.

    str(InputSpec(shape=(2, 3), dtype="float32")) == "2x3"
    str(InputSpec(shape=(2, 9), dtype="int64"))   == "2x9:int64"
    """

    shape: tuple[int, ...]
    dtype: DType = "float32"

    def __str__(self) -> str:
        suffix = "" if self.dtype == "float32" else f":{self.dtype}"
        return "x".join(str(size) for size in self.shape) + suffix


def parse_inputs(text: str) -> tuple[InputSpec, ...]:
    """Read `2x3x224x224[:dtype][,...]`; the dtype is float32 unless named.

    parse_inputs("2x16:int64, 2x16") gives an int64 and a float32 input of 2 x 16.
    Raises UsageError naming the part that cannot be read.
    """
    return tuple(_parse_one(part.strip(), text) for part in text.split(","))


def _parse_one(part: str, text: str) -> InputSpec:
    shape_text, colon, dtype_text = part.partition(":")
    where = f"reading the input shape at {part!r} of {text!r}"
    if not _SHAPE.fullmatch(shape_text):
        raise UsageError(
            f"{where}: expected sizes joined by 'x' such as 2x3x224x224, got {shape_text!r}. "
            f"Write the batch first, then the other sizes.",
            where=part,
        )
    shape = tuple(int(size) for size in shape_text.split("x"))
    if 0 in shape:
        raise UsageError(
            f"{where}: expected sizes of at least 1, got a 0. Give every dim its real size.",
            where=part,
        )
    for dtype in get_args(DType):
        if dtype_text == dtype or not colon:
            return InputSpec(shape=shape, dtype=dtype)
    raise UsageError(
        f"{where}: expected a dtype of {', '.join(DTYPES)}, got {dtype_text!r}. "
        f"Name one of them after the colon.",
        where=part,
    )


def as_dtype(name: str, where: str) -> DType:
    """A dtype by its name, of those that an example can have; UsageError for another."""
    for dtype in get_args(DType):
        if dtype == name:
            known: DType = dtype
            return known
    raise UsageError(
        f"making an example at input {where!r}: expected a dtype of {', '.join(DTYPES)}, got "
        f"{name}. Pass the example inputs in Python: from_onnx(path, (x,)).",
        where=where,
    )
