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
