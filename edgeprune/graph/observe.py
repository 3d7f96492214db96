"""Run a captured graph once and note the shape of every value.

Shapes come from a real run, not from export metadata: metadata goes stale after surgery, and a
graph with data-dependent values has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Argument, Target

from edgeprune.graph.module import CapturedModule, flat_inputs


@dataclass(frozen=True, slots=True)
class TensorFact:
    """Shape and dtype of one value of the graph, at the example inputs."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Fact: TypeAlias = "TensorFact | tuple[Fact, ...] | int | float | bool | str | None"
Facts: TypeAlias = Mapping[str, Fact]


def describe(value: object) -> Fact:
    """The fact of one value: tensors by shape and dtype, sequences member by member."""
    if isinstance(value, torch.Tensor):
        return TensorFact(tuple(value.shape), value.dtype)
    if isinstance(value, tuple | list):
        return tuple(describe(member) for member in value)
    if isinstance(value, int | float | bool | str) or value is None:
        return value
    return str(value)


class _Observer(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.facts: dict[str, Fact] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        self.facts[n.name] = describe(result)
        return result


def observe(
    module: CapturedModule, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], Facts]:
    """Run the graph; give its flat outputs and the fact of every node by name."""
    observer = _Observer(module)
    with torch.no_grad():
        outputs = observer.run(*flat_inputs(module, args, kwargs), enable_io_processing=False)
    return tuple(outputs), observer.facts


class _Shaper(_Observer):
    """Runs on tensors without data: every parameter, and whatever is created, is on `meta`."""

    def fetch_attr(self, target: str) -> object:
        value = super().fetch_attr(target)
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    def call_function(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, object]
    ) -> object:
        if isinstance(target, OpOverload):
            takes = {argument.name for argument in target._schema.arguments}
            creates = not any(isinstance(arg, torch.Tensor) for arg in args)
            if "device" in takes and (creates or kwargs.get("device") is not None):
                kwargs = {**kwargs, "device": "meta"}
        return super().call_function(target, args, kwargs)


def shapes_only(
    module: CapturedModule, args: tuple[object, ...], kwargs: dict[str, object]
) -> Facts | None:
    """The facts of `observe` without computing a value; None where a shape depends on values.

    For a check that a run will repeat anyway: what has no kernel for it is not tried further.
    """
    leaves = [
        leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf
        for leaf in flat_inputs(module, args, kwargs)
    ]
    shaper = _Shaper(module)
    try:
        with torch.no_grad():
            shaper.run(*leaves, enable_io_processing=False)
    except (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError):
        return None
    return shaper.facts
