"""A net around one worked call, and what it has to compute once a part of it is gone.

Each operand comes from a layer that can lose a part of one dim, from data, or is a tensor of the
model; a linear layer reads the whole result, so that any of its dims may lose positions.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from operator_examples import Argument, Example, Operand
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from edgeprune.graph.module import attribute
from edgeprune.planning.plan import Plan

aten = torch.ops.aten

# A layer that can lose positions of this dim; data of full size; a tensor of the model.
Source: TypeAlias = "int | Literal['data', 'own']"

_OUTPUTS = 24
_HEARD = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """One call, with the source of each of its tensor operands in order."""

    target: OpOverload
    example: Example
    sources: tuple[Source, ...]

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{operand.kind}{list(operand.shape)} from {_told(source)}"
            for operand, source in zip(operands(self.example), self.sources, strict=True)
        )
        return f"{self.target}({shapes})"


def _told(source: Source) -> str:
    return f"a layer along dim {source}" if isinstance(source, int) else source


def operands(example: Example) -> list[Operand]:
    """The tensor operands of a call in order, what meets its result last."""
    leaves = pytree.tree_leaves(
        (example.args, example.kwargs, example.partner),
        is_leaf=lambda leaf: isinstance(leaf, Operand),
    )
    return [leaf for leaf in leaves if isinstance(leaf, Operand)]


def variants(target: OpOverload, example: Example, mixed: int) -> list[Variant]:
    """Every operand by itself along every dim, beside data and beside the model's own tensors;
    all of them along one dim; and a number of other mixtures."""
    found = operands(example)
    dims = [[d for d, size in enumerate(o.shape) if size > 1] for o in found]
    chosen: dict[tuple[Source, ...], None] = {}
    for index, options in enumerate(dims):
        for source in ("own", *options):
            for others in ("data", "own"):
                chosen[tuple(source if i == index else others for i in range(len(found)))] = None
    deepest = max((len(operand.shape) for operand in found), default=0)
    for back in range(1, deepest + 1):
        chosen[
            tuple(
                len(o.shape) - back if len(o.shape) - back in options else "own"
                for o, options in zip(found, dims, strict=True)
            )
        ] = None
    dice = random.Random(0)
    for _ in range(mixed if len(found) > 1 else 0):
        chosen[tuple(dice.choice(["data", "own", *options]) for options in dims)] = None
    return [Variant(target, example, sources) for sources in chosen]


def writes(target: OpOverload) -> bool:
    """Whether the first operand is written in place."""
    first = next(iter(target._schema.arguments), None)
    return first is not None and first.alias_info is not None and first.alias_info.is_write


@dataclass(slots=True, eq=False)
class OperatorNet:
    """Variants side by side in one graph: one output each.

    `made` names the layers behind each variant's operands, `own` the model's tensors that are
    operands, `readers` the nodes that read a result or a layer, with the name of their weight.
    """

    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    inputs: list[torch.Tensor] = field(default_factory=list)
    made: list[list[str]] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    readers: dict[str, str] = field(default_factory=dict)
    outputs: list[fx.Node] = field(default_factory=list)
    dice: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(3))
    heard: list[fx.Node] = field(default_factory=list)
    values: dict[fx.Node, object] = field(default_factory=dict)
    last_input: fx.Node | None = None
    built: fx.GraphModule | None = None

    def add(self, variant: Variant) -> None:
        """One more call, and a reader of all of its results and of each layer behind it."""
        self.made.append([])
        sources = iter(variant.sources)
        self.heard = []

        def fed(argument: Argument) -> object:
            if isinstance(argument, Operand):
                return self._operand(argument, next(sources))
            if isinstance(argument, torch.Tensor):
                return self._tensor("constant", argument)
            if isinstance(argument, list | tuple):
                return [fed(member) for member in argument]
            return argument

        args = [fed(argument) for argument in variant.example.args]
        if writes(variant.target):
            args[0] = self._call(aten.clone.default, args[0])
        kwargs = {name: fed(value) for name, value in variant.example.kwargs.items()}
        result = self._call(variant.target, *args, **kwargs)
        self.outputs.append(result)
        written = [args[0]] if writes(variant.target) else []
        met = variant.example.partner
        partner = None if met is None else self._operand(met, next(sources))
        self._close([*self._results(variant, result, partner), *written])

    def module(self) -> fx.GraphModule:
        """The graph as torch.export would give it."""
        if self.built is not None:
            return self.built
        self.graph.output(tuple(self.outputs))
        count = len(self.inputs)
        names = [node.name for node in self.graph.nodes if node.op == "placeholder"]
        _, spec = pytree.tree_flatten((tuple(self.inputs), {}))
        _, out = pytree.tree_flatten(tuple([0] * len(self.outputs)))
        info = fx.graph._PyTreeInfo(names[:count], spec, out)
        self.graph.set_codegen(fx.graph._PyTreeCodeGen(info))
        self.built = fx.GraphModule(self.root, self.graph).eval()
        return self.built

    def silenced(self, plan: Plan, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The dense net's outputs when its removed layers' values are 0 and no reader hears them.

        A sum over a removed axis then adds zeros; what else becomes of them is not read.
        """
        kept: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for axis in plan.axes:
            mask = torch.zeros(axis.size, dtype=torch.bool)
            mask[list(axis.keep)] = True
            kept.setdefault(axis.parameter, []).append((axis.dim, mask))
        zeroed = {}
        for name in (*self.own, *(n for layers in self.made for n in layers)):
            for full in (name, name.replace(".weight", ".bias")):
                if full in kept:
                    zeroed[full] = _zeroed(self.root, full, kept[full])
        heard = {node: dict(kept.get(name, ())).get(1) for node, name in self.readers.items()}
        return _Oracle(self.module(), zeroed, heard).run(*inputs, enable_io_processing=False)

    def _operand(self, operand: Operand, source: Source) -> fx.Node:
        if source == "own":
            return self._own(operand)
        shape = list(operand.shape)
        if operand.kind == "complex":
            parts = [self._floats(operand, source), self._floats(operand, source)]
            return self._call(aten.complex.default, *parts)
        node = self._input(shape) if source == "data" else self._floats(operand, source)
        return self._in_domain(node, operand)

    def _floats(self, operand: Operand, source: Source) -> fx.Node:
        """A layer's values with the removable dim where it is asked for, or data."""
        if not isinstance(source, int):
            return self._input(operand.shape)
        shape = list(operand.shape)
        size, last = shape[source], len(shape) - 1
        shape[source] = shape[last]
        shape[last] = _HEARD
        name = self._linear(_HEARD, size)
        self.made[-1].append(f"{name}.weight")
        node = self._call(
            aten.linear.default,
            self._input(shape),
            self._attribute(f"{name}.weight"),
            self._attribute(f"{name}.bias"),
        )
        if source != last:
            node = self._call(aten.transpose.int, node, source, last)
            node = self._call(aten.contiguous.default, node)
        self.heard.append(node)
        return node

    def _in_domain(self, node: fx.Node, operand: Operand) -> fx.Node:
        match operand.kind, operand.domain:
            case "bool", _:
                return self._call(aten.gt.Scalar, node, 0.1)
            case "index", _:
                unit = self._call(aten.mul.Tensor, self._call(aten.sigmoid.default, node), 0.999)
                spread = self._call(aten.mul.Tensor, unit, operand.below)
                return self._call(aten.to.dtype, spread, torch.int64)
            case _, "positive":
                return self._call(aten.add.Tensor, self._call(aten.square.default, node), 1.1)
            case _, "unit":
                return self._call(aten.sigmoid.default, node)
            case _, "signed unit":
                return self._call(aten.tanh.default, node)
        return node

    def _own(self, operand: Operand) -> fx.Node:
        noise = torch.randn(operand.shape, generator=self.dice)
        match operand.kind, operand.domain:
            case "bool", _:
                node = self._tensor("own", noise > 0)
            case "index", _:
                node = self._tensor("own", (noise.sigmoid() * operand.below).long())
            case "complex", _:
                node = self._tensor("own", torch.complex(noise, noise.flip(0)))
            case _, "positive":
                node = self._tensor("own", nn.Parameter(noise.square() + 1.1))
            case _, "unit":
                node = self._tensor("own", nn.Parameter(noise.sigmoid()))
            case _, "signed unit":
                node = self._tensor("own", nn.Parameter(noise.tanh()))
            case _:
                node = self._tensor("own", nn.Parameter(noise))
        self.own.append(str(node.target))
        return node

    def _results(self, variant: Variant, result: fx.Node, partner: fx.Node | None) -> list[fx.Node]:
        """Tensors that the call gives, times `partner` if there is one."""
        example = self.values[result]
        if isinstance(example, torch.Tensor):
            found, values = [result], [example]
        else:
            values = list(example)
            found = [self._call(operator.getitem, result, i) for i in range(len(values))]
        if partner is None:
            return found
        if "empty" in variant.target._schema.name:
            found = [self._call(aten.fill_.Scalar, node, 0.5) for node in found]
        return [self._call(aten.mul.Tensor, node, partner) for node in found]

    def _close(self, results: Sequence[fx.Node]) -> None:
        total = None
        # Some operators give an empty tensor where they have nothing to say.
        told = [node for node in results if self.values[node].numel()]
        for node in (*told, *self.heard):
            read = self._read(node)
            total = read if total is None else self._call(aten.add.Tensor, total, read)
        if not self.heard:
            # Nothing else varies from input to input.
            side = self._read(self._input((2, 3)))
            total = side if total is None else self._call(aten.add.Tensor, total, side)
        self.outputs[-1] = total

    def _read(self, node: fx.Node) -> fx.Node:
        value = self.values[node]
        if value.is_complex():
            if value.is_conj():  # lazily conjugate: without numbers of its own to look at
                node = self._call(aten.resolve_conj.default, node)
            node = self._call(aten.view_as_real.default, node)
            value = self.values[node]
        if value.dtype is not torch.float32:
            node = self._call(aten.to.dtype, node, torch.float32)
        flat = self._call(aten.reshape.default, node, [1, value.numel()])
        name = self._linear(value.numel(), _OUTPUTS)
        read = self._call(aten.linear.default, flat, self._attribute(f"{name}.weight"))
        self.readers[read.name] = f"{name}.weight"
        return read

    def _call(self, target: Callable[..., object], *args: object, **kwargs: object) -> fx.Node:
        """A node, and its value at the example inputs."""
        node = self.graph.call_function(target, args, kwargs)
        given, named = fx.map_arg((args, kwargs), lambda n: self.values[n])
        with torch.no_grad():
            self.values[node] = target(*given, **named)
        return node

    def _input(self, shape: Sequence[int]) -> fx.Node:
        """A placeholder: all of them stand before everything else."""
        if self.last_input is None:
            place = self.graph.inserting_before(next(iter(self.graph.nodes), None))
        else:
            place = self.graph.inserting_after(self.last_input)
        with place:
            node = self.graph.placeholder(f"input{len(self.inputs)}")
        self.last_input = node
        self.inputs.append(torch.randn(tuple(shape), generator=self.dice))
        self.values[node] = self.inputs[-1]
        return node

    def _attribute(self, name: str) -> fx.Node:
        node = self.graph.get_attr(name)
        self.values[node] = attribute(self.root, name)
        return node

    def _linear(self, into: int, out: int) -> str:
        name = f"layer{len(list(self.root.children()))}"
        layer = nn.Linear(into, out)
        layer.weight.data = torch.randn(out, into, generator=self.dice) / into**0.5
        layer.bias.data = 0.3 * torch.randn(out, generator=self.dice)
        self.root.add_module(name, layer)
        return name

    def _tensor(self, kind: str, tensor: torch.Tensor) -> fx.Node:
        if isinstance(tensor, nn.Parameter):
            name = f"{kind}{len(self.root._parameters)}"
            self.root.register_parameter(name, tensor)
        else:
            name = f"{kind}_buffer{len(self.root._buffers)}"
            self.root.register_buffer(name, tensor)
        return self._attribute(name)


class _Oracle(fx.Interpreter):
    """Runs a graph with some tensors replaced, and readers that hear a part of their input."""

    def __init__(
        self,
        module: fx.GraphModule,
        tensors: dict[str, torch.Tensor],
        heard: dict[str, torch.Tensor | None],
    ) -> None:
        super().__init__(module)
        self.tensors = tensors
        self.heard = heard

    def run_node(self, n: fx.Node) -> object:
        if n.op == "get_attr" and n.target in self.tensors:
            return self.tensors[n.target]
        mask = self.heard.get(n.name)
        if mask is None:
            return super().run_node(n)
        x, weight = self.fetch_args_kwargs_from_env(n)[0]
        return aten.linear.default(torch.where(mask, x, torch.zeros_like(x)), weight)


def net_of(some: Sequence[Variant]) -> OperatorNet:
    """All of `some` in one graph."""
    made = OperatorNet()
    for variant in some:
        made.add(variant)
    return made


def _zeroed(root: nn.Module, name: str, axes: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    tensor = root.get_parameter(name) if name in dict(root.named_parameters()) else None
    tensor = root.get_buffer(name) if tensor is None else tensor
    for dim, mask in axes:
        shape = [1] * tensor.dim()
        shape[dim] = -1
        tensor = torch.where(mask.reshape(shape), tensor, torch.zeros_like(tensor))
    return tensor.detach()
