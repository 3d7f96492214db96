"""What an ONNX operator is given while the model is rebuilt, and the table of operators.

A value is a tensor, or `Numbers`: sizes, indices, bounds that are known while the graph is read.
ONNX computes shapes by operators on tensors; here they are Python integers, symbolic where the
batch is, so that torch.export sees sizes and not data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.recipe.onnx_source import Array, Step

Number: TypeAlias = "int | float | bool | torch.SymInt | torch.SymFloat"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """Numbers of any shape that are known while the graph is read; `dtype` is NumPy's name."""

    array: NDArray[np.object_]
    dtype: str

    @property
    def is_fixed(self) -> bool:
        """Whether no size of the batch is in them."""
        symbolic = (torch.SymInt, torch.SymFloat, torch.SymBool)
        return not any(isinstance(value, symbolic) for value in self.array.flat)


Value: TypeAlias = "torch.Tensor | Numbers"
Result: TypeAlias = "Value | tuple[Value, ...]"


def as_numbers(values: object, dtype: str) -> Numbers:
    """Numbers of Python's own types, nested as given."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    array = np.empty((), object) if not isinstance(values, list) else np.array(values, object)
    if not isinstance(values, list):
        array[()] = values
    return Numbers(array=array, dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One step with the values of its inputs (None where left out).

    fixed_batch: the batch that the file has written into its shapes while another one is being
    tried; None where the batch is the file's own.
    """

    step: Step
    values: tuple[Value | None, ...]
    fixed_batch: int | None = None

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.values) and self.values[index] is not None

    def value(self, index: int) -> Value:
        """The input, which must be there."""
        found = self.values[index] if index < len(self.values) else None
        if found is None:
            raise self.step.refused(f"an input {index}", "none")
        return found

    def tensor(self, index: int = 0) -> torch.Tensor:
        """The input as a tensor; Numbers become a constant of the graph."""
        value = self.value(index)
        return value if isinstance(value, torch.Tensor) else to_tensor(value, self.step)

    def optional(self, index: int) -> torch.Tensor | None:
        """The input as a tensor, None where left out."""
        return self.tensor(index) if self.has(index) else None

    def operand(self, index: int) -> torch.Tensor | Number:
        """The input of a pointwise operator: one number stays a number, which torch broadcasts."""
        value = self.value(index)
        if isinstance(value, Numbers) and value.array.size == 1:
            return cast("Number", value.array.reshape(-1)[0])
        return self.tensor(index)

    def numbers(self, index: int) -> list[Number]:
        """A list of sizes, axes or factors that must be known while the graph is read."""
        value = self.value(index)
        if not isinstance(value, Numbers):
            raise self.step.refused(
                f"input {index} ({self.step.inputs[index]!r}) to be known without data",
                "values that are computed from the model's input or weights",
            )
        return list(value.array.reshape(-1))

    def number(self, index: int, default: Number) -> Number:
        """One number, or the default where the input is left out."""
        if not self.has(index):
            return default
        found = self.numbers(index)
        if len(found) != 1:
            raise self.step.refused(f"one number as input {index}", f"{len(found)}")
        return found[0]

    def sizes(self, index: int) -> list[int]:
        """Sizes or axes; symbolic ones count as int, as torch's own annotations have it."""
        return [cast("int", value) for value in self.numbers(index)]

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.step.attributes.get(name, default)
        if not isinstance(value, int):
            raise self.step.refused(f"an integer as {name}", repr(value))
        return value

    def real(self, name: str, default: float) -> float:
        """A number attribute."""
        value = self.step.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise self.step.refused(f"a number as {name}", repr(value))
        return float(value)

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        value = self.step.attributes.get(name, default)
        if not isinstance(value, str):
            raise self.step.refused(f"text as {name}", repr(value))
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A list of integers; refused where it is neither given nor has a default."""
        value = self.step.attributes.get(name, None if default is None else tuple(default))
        if not isinstance(value, tuple) or not all(isinstance(item, int) for item in value):
            raise self.step.refused(f"integers as {name}", "none" if value is None else repr(value))
        return [int(item) for item in value]

    def axes(self, index: int = 1) -> list[int] | None:
        """Axes as newer opsets give them (input `index`) or older ones (attribute); None: all."""
        if self.has(index):
            return self.sizes(index)
        return self.integers("axes") if "axes" in self.step.attributes else None

    def constant(self, name: str) -> Array | None:
        """A tensor attribute."""
        value = self.step.attributes.get(name)
        return value if isinstance(value, np.ndarray) else None

    def require(self, name: str, *allowed: object) -> None:
        """Refuse an attribute with a value that this package does not carry out."""
        value = self.step.attributes.get(name, allowed[0])
        if value not in allowed:
            raise self.step.refused(
                f"{name} = {' or '.join(repr(one) for one in allowed)}", repr(value)
            )


def to_tensor(numbers: Numbers, step: Step) -> torch.Tensor:
    """Numbers as a constant of the graph."""
    if not numbers.is_fixed:
        raise step.refused("fixed numbers", "some that depend on the batch size")
    return torch.tensor(numbers.array.tolist(), dtype=torch_dtype(numbers.dtype))


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of NumPy's name, e.g. `int64`."""
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"dtype at {name}: expected one of torch's, got {found!r}. Name another.")
    return found


Op: TypeAlias = Callable[[Call], Result]
Registered = TypeVar("Registered", bound=Op)

_OPS: dict[str, Op] = {}
_NUMBER_OPS: dict[str, Op] = {}


def onnx_op(*names: str) -> Callable[[Registered], Registered]:
    """Register how operators act on tensors, e.g. `@onnx_op("Conv")`."""
    return _into(_OPS, names)


def number_op(*names: str) -> Callable[[Registered], Registered]:
    """Register how operators act where every input is known while the graph is read."""
    return _into(_NUMBER_OPS, names)


def _into(table: dict[str, Op], names: tuple[str, ...]) -> Callable[[Registered], Registered]:
    def register(function: Registered) -> Registered:
        for name in names:
            if name in table:
                raise TypeError(
                    f"registering {name}: expected a name without a function, got one that has "
                    f"{table[name].__name__}. Remove one of the two."
                )
            table[name] = function
        return function

    return register


def known_operators() -> tuple[str, ...]:
    """Every ONNX operator that can be imported, sorted."""
    return tuple(sorted({*_OPS, *_NUMBER_OPS}))


def run(call: Call) -> tuple[Value, ...]:
    """The outputs of one step; ModelNotSupported for an operator that is not in the table."""
    name = call.step.op
    given = [value for value in call.values if value is not None]
    operation = _OPS.get(name)
    all_known = all(isinstance(value, Numbers) for value in given)
    if name == "Shape" or (all_known and name in _NUMBER_OPS):
        operation = _NUMBER_OPS[name]
    if operation is None:
        raise call.step.refused("inputs that are known without data", "tensors")
    result = operation(call)
    return result if isinstance(result, tuple) else (result,)
