"""The same model and inputs in float64, to tell rounding from error."""

from __future__ import annotations

import copy
from typing import TypeAlias, TypeVar, cast

import torch
from torch import fx, nn
from torch.fx.node import Argument

from edgeprune.graph.inputs import Inputs, map_tensors

M = TypeVar("M", bound=nn.Module)

Arguments: TypeAlias = tuple[Argument, ...]
Named: TypeAlias = dict[str, Argument]


def in_float64(module: M) -> M:
    """A copy in float64, float32 written into the graph (casts, created tensors) included."""
    result = copy.deepcopy(module).double()
    if isinstance(result, fx.GraphModule):
        for node in result.graph.nodes:
            node.args = cast(Arguments, fx.node.map_aggregate(node.args, _wider))
            node.kwargs = cast(Named, fx.node.map_aggregate(node.kwargs, _wider))
        result.recompile()
    return result


def _wider(argument: Argument) -> Argument:
    return torch.float64 if argument is torch.float32 else argument


def inputs_in_float64(inputs: Inputs) -> Inputs:
    """The same inputs, floating-point ones in float64."""
    return map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
