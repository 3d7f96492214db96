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


LOW = (torch.float16, torch.bfloat16)


def is_low(module: nn.Module) -> bool:
    """Whether a parameter is of half precision: its rounding is all that two runs may share."""
    return any(parameter.dtype in LOW for parameter in module.parameters())


def in_float64(module: M) -> M:
    """A copy in float64, dtypes written into the graph (casts, created tensors) included.

    Those are float32, and half precision where parameters are of it.
    """
    narrow = (torch.float32, *LOW) if is_low(module) else (torch.float32,)
    # Straight from the original: a copy in float32 between would cost half as much memory again.
    wide: dict[int, object] = {
        id(tensor): nn.Parameter(tensor.detach().double(), requires_grad=tensor.requires_grad)
        for tensor in module.parameters()
        if tensor.is_floating_point() and tensor.dtype is not torch.float64
    }
    result = copy.deepcopy(module, wide).double()

    def wider(argument: Argument) -> Argument:
        return torch.float64 if any(argument is dtype for dtype in narrow) else argument

    if isinstance(result, fx.GraphModule):
        for node in result.graph.nodes:
            node.args = cast(Arguments, fx.node.map_aggregate(node.args, wider))
            node.kwargs = cast(Named, fx.node.map_aggregate(node.kwargs, wider))
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


def inputs_in_float64(inputs: Inputs) -> Inputs:
    """The same inputs, floating-point ones in float64."""
    return map_tensors(inputs, lambda t: t.double() if t.is_floating_point() else t)
