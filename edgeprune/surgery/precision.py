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
    # Straight from the original: a copy in float32 between would cost half as much memory again.
    wide: dict[int, object] = {
        id(tensor): nn.Parameter(tensor.detach().double(), requires_grad=tensor.requires_grad)
        for tensor in module.parameters()
        if tensor.is_floating_point() and tensor.dtype is not torch.float64
    }
    result = copy.deepcopy(module, wide).double()
    if isinstance(result, fx.GraphModule):
        for node in result.graph.nodes:
            node.args = cast(Arguments, fx.node.map_aggregate(node.args, _wider))
            node.kwargs = cast(Named, fx.node.map_aggregate(node.kwargs, _wider))
        result.recompile()
    return result


def forget(module: nn.Module) -> None:
    """Let go of all tensors of a copy that is no longer needed, in place.

    A graph and its module refer to each other: left to itself such a copy of a large network stays
    until Python next looks for cycles, and the one after it is made meanwhile.
    """
    for part in module.modules():
        part._parameters.clear()
        part._buffers.clear()


def _wider(argument: Argument) -> Argument:
    return torch.float64 if argument is torch.float32 else argument


def inputs_in_float64(inputs: Inputs) -> Inputs:
    """The same inputs, floating-point ones in float64."""
    return map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
