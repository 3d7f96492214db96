"""Which nodes of a shrunk graph repair can refit: readers that no longer hear what they did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.fx.node import Argument

from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.operators import CONVOLUTIONS, TRANSPOSED, cell_parameters
from edgeprune.surgery.repair_layouts import Dense, Kernel, Layout
from edgeprune.surgery.survivors import Survivors

aten = torch.ops.aten

_INSIDE = "it is inside a recurrent cell, whose steps hear each other"
_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default)


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """Argument numbers of a reader's input, weight and bias (None where the operator has none)."""

    input: int
    weight: int
    bias: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reader:
    """A node that repair can refit: its parameters are its own, and it is linear in them.

    `name` is the weight's; `node` belongs to the shrunk graph, the dense one has its namesake.
    """

    name: str
    node: fx.Node
    operands: Operands
    layout: Layout
    weight: nn.Parameter
    bias: nn.Parameter | None

    @property
    def source(self) -> fx.Node:
        """The node whose value it reads."""
        return cast(fx.Node, self.node.args[self.operands.input])

    def output(
        self,
        values: Mapping[fx.Node, object],
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the node gives for the values of its inputs, with other parameters where given."""
        args = list(self.node.args)
        if weight is not None:
            args[self.operands.weight] = cast(Argument, weight)
        if bias is not None and self.operands.bias is not None:
            args[self.operands.bias] = cast(Argument, bias)
        filled = fx.node.map_arg(tuple(args), lambda node: cast(Argument, values[node]))
        result: torch.Tensor = cast(OpOverload, self.node.target)(*filled)
        return result


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A reader that hears something else than before and cannot be refitted, and why."""

    name: str
    why: str


def find_readers(left: Survivors, module: CapturedModule) -> tuple[Reader | LeftAlone, ...]:
    """Readers with a parameter whose input differs from the dense model's, in graph order."""
    different = _different(left, module)
    uses = _uses(module)
    found: list[Reader | LeftAlone] = []
    for node in module.graph.nodes:
        operands = _operands(node)
        if node in different and operands is not None:
            reader = _reader(module, node, operands, uses)
            if reader is not None:
                found.append(reader)
        elif node in different:
            found += [LeftAlone(str(p.target), _INSIDE) for p in _cell_weights(module, node)]
    return tuple(found)


def _cell_weights(module: CapturedModule, node: fx.Node) -> list[fx.Node]:
    """The matrices of a recurrent cell."""
    found = []
    for argument in cell_parameters(node):
        weight = _parameter(module, argument)
        if weight is not None and weight.dim() > 1:
            found.append(argument)
    return found


def _different(left: Survivors, module: CapturedModule) -> set[fx.Node]:
    """Nodes whose kept positions have other values than in the dense model.

    It starts where something removed is no longer heard, and goes on downstream.
    """
    kept = left.kept
    walk = left.analysis.walk
    deaf = {edge.node for edge in walk.edges if not kept[edge.layer.numpy()].all()}
    deaf |= {item.node for item in walk.redefinitions if not kept[item.layer.numpy()].all()}
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.name in deaf or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _uses(module: CapturedModule) -> dict[int, int]:
    """How often each tensor of the model is read, by `id`: under whatever names."""
    uses: dict[int, int] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            key = id(attribute(module, str(node.target)))
            readings = sum(user.all_input_nodes.count(node) for user in node.users)
            uses[key] = uses.get(key, 0) + readings
    return uses


def _operands(node: fx.Node) -> Operands | None:
    """The operands of a node that may be a reader."""
    bias = {True: 2, False: None}
    match node.target:
        case aten.linear.default:
            return Operands(0, 1, bias[len(node.args) > 2 and node.args[2] is not None])
        case aten.addmm.default:
            return Operands(1, 2, 0)
        case target if target in _PRODUCTS:
            return Operands(0, 1, None)
        case target if target in CONVOLUTIONS or target in TRANSPOSED:
            return Operands(0, 1, bias[len(node.args) > 2 and node.args[2] is not None])
    return None


def _reader(
    module: CapturedModule, node: fx.Node, operands: Operands, uses: dict[int, int]
) -> Reader | LeftAlone | None:
    """None for a product of two values that depend on the input: no parameter reads there."""
    weight = _parameter(module, node.args[operands.weight])
    if weight is None:
        return _without_parameter(node, operands)
    name = str(cast(fx.Node, node.args[operands.weight]).target)
    if uses[id(weight)] > 1:
        return LeftAlone(name, f"its weight is read at {uses[id(weight)]} places")
    bias = None if operands.bias is None else _parameter(module, node.args[operands.bias])
    if bias is not None and (uses[id(bias)] > 1 or bias.dim() != 1):
        # A shared bias stays as it is: the weight is then fitted to a wrong level.
        return LeftAlone(name, "its bias is not its own")
    if operands.bias is not None and bias is None:
        return LeftAlone(name, "its bias is computed")
    if node.kwargs or not isinstance(node.args[operands.input], fx.Node):
        return LeftAlone(name, f"{node.target} is called in a way that repair does not know")
    layout = _layout(node, weight)
    if isinstance(layout, str):
        return LeftAlone(name, layout)
    return Reader(name=name, node=node, operands=operands, layout=layout, weight=weight, bias=bias)


def _parameter(module: CapturedModule, argument: object) -> nn.Parameter | None:
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    found = attribute(module, str(argument.target))
    return found if isinstance(found, nn.Parameter) and found.is_floating_point() else None


def _without_parameter(node: fx.Node, operands: Operands) -> LeftAlone | None:
    """A weight that is computed from a parameter, or stands on the left, is named and left."""
    for argument in (node.args[operands.weight], node.args[operands.input]):
        if not isinstance(argument, fx.Node):
            continue
        behind = argument
        while behind.op == "call_function" and len(behind.all_input_nodes) == 1:
            behind = behind.all_input_nodes[0]
        if behind.op == "get_attr":
            why = "its weight is no parameter read directly from the right"
            return LeftAlone(str(behind.target), f"{why} ({node.name})")
    return None


def _layout(node: fx.Node, weight: nn.Parameter) -> Layout | str:
    """How the node is linear in its weight, or why it cannot be said."""
    if node.target not in CONVOLUTIONS and node.target not in TRANSPOSED:
        if weight.dim() != 2:
            return f"its weight has {weight.dim()} dims"
        return Dense(outputs_first=node.target is aten.linear.default)
    spatial = weight.dim() - 2
    transposed = node.target in TRANSPOSED
    # (x, w, b, stride, padding, dilation, groups) or (..., output_padding, groups, dilation).
    stride = _per_dim(node, 3, spatial, 1)
    dilation = _per_dim(node, 7 if transposed else 5, spatial, 1)
    padding = _padding(node, weight, dilation)
    groups = node.args[6] if len(node.args) > 6 else 1
    if stride is None or dilation is None or padding is None or not isinstance(groups, int):
        return "its stride, padding, dilation or groups is computed"
    return Kernel(
        weight_shape=tuple(weight.shape),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
    )


def _padding(
    node: fx.Node, weight: nn.Parameter, dilation: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Positions of zeros before the first of each dim."""
    written = node.args[4] if len(node.args) > 4 else 0
    if written == "valid":
        return (0,) * (weight.dim() - 2)
    if written == "same" and dilation is not None:
        spans = zip(dilation, weight.shape[2:], strict=True)
        return tuple(step * (taps - 1) // 2 for step, taps in spans)
    return _per_dim(node, 4, weight.dim() - 2, 0)


def _per_dim(node: fx.Node, position: int, spatial: int, default: int) -> tuple[int, ...] | None:
    """A number a spatial dim; None where one is computed."""
    written = node.args[position] if len(node.args) > position else default
    numbers = list(written) if isinstance(written, list | tuple) else [written]
    numbers = numbers * spatial if len(numbers) == 1 else numbers
    plain = tuple(number for number in numbers if isinstance(number, int))
    return plain if len(plain) == len(numbers) == spatial else None
