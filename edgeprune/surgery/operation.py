"""One surgery under way: the shrunk graph being edited, and the dense values it comes from."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Argument

from edgeprune.errors import InternalError
from edgeprune.graph.labels import Value
from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.observe import TensorFact
from edgeprune.graph.rules.lookup import constant_behind
from edgeprune.surgery.survivors import Survivors

aten = torch.ops.aten

_INDEX = "kept"
_VIEWS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unflatten.int,
)


@dataclass(slots=True)
class Operation:
    """`module` is edited in place; node names are those of the dense graph."""

    module: CapturedModule
    survivors: Survivors
    # Nodes that surgery put behind one of the dense graph, with its name.
    _stands_for: dict[str, str] = field(default_factory=dict)
    _numbers: dict[str, int | float] = field(default_factory=dict)

    def before(self, argument: object) -> Value:
        """The dense value that a node of the graph had."""
        if isinstance(argument, fx.Node):
            name = self._stands_for.get(argument.name, argument.name)
            value = self.survivors.analysis.walk.values.get(name)
            if isinstance(value, Value):
                return value
        raise InternalError(f"surgery: expected a tensor of the dense graph, got {argument!r}.")

    def shape_after(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of the node's result after surgery, at the example inputs."""
        return self.survivors.shape(self.before(node))

    def members_after(self, node: fx.Node) -> list[tuple[int, ...]]:
        """Shapes of the results of a node with several."""
        value = self.survivors.analysis.walk.values[node.name]
        if not isinstance(value, tuple):
            raise InternalError(f"surgery at {node.name}: expected several results.")
        return [self.survivors.shape(m) for m in value if isinstance(m, Value)]

    def sizes(self, node: fx.Node, written: object, first: int = 0) -> list[Argument]:
        """The written sizes of a node's result, adapted to what survives.

        A number becomes the new number. -1 stays. A symbolic size (batch x 12 heads) stays if it
        comes out right by itself, else becomes -1 where that is free, else is scaled. The sizes
        are those of the result's dims from `first` on.
        """
        shape = self.shape_after(node)[first:]
        sizes = cast("Sequence[Argument]", written)
        result: list[Argument] = []
        wrong: list[int] = []
        for dim, size in enumerate(sizes):
            if isinstance(size, fx.Node):
                if self.number(size) != shape[dim]:
                    wrong.append(dim)
                result.append(size)
            else:
                result.append(-1 if size == -1 else shape[dim])
        # Elsewhere -1 means something else, or nothing.
        is_view = node.target in _VIEWS
        for dim in wrong:
            if is_view and -1 not in result:
                result[dim] = -1
            else:
                symbol = cast(fx.Node, result[dim])
                result[dim] = self.scaled(node, symbol, shape[dim])
        return result

    def scaled(self, node: fx.Node, symbol: fx.Node, wanted: int) -> fx.Node:
        """symbol * wanted // what it is now: exact at the example, proportional elsewhere."""
        now = self.number(symbol)
        with self.module.graph.inserting_before(node):
            product = self.module.graph.call_function(operator.mul, (symbol, wanted))
            return self.module.graph.call_function(operator.floordiv, (product, int(now)))

    def dense_number(self, node: fx.Node) -> int:
        """What a symbolic size is in the dense model, at the example inputs."""
        fact = self._fact(node)
        if isinstance(fact, int):
            return fact
        raise InternalError(f"surgery at {node.name}: expected a symbolic size, got {fact}.")

    def number(self, node: fx.Node) -> int | float:
        """What a symbolic size will be after surgery, at the example inputs."""
        if node.name not in self._numbers:
            self._numbers[node.name] = self._compute(node)
        return self._numbers[node.name]

    def _compute(self, node: fx.Node) -> int | float:
        if node.target is aten.sym_size.int:
            dim = cast(int, node.args[1])
            return self.survivors.shape(self.before(node.args[0]))[dim]
        if node.op == "call_function" and callable(node.target):
            args = [self.number(a) if isinstance(a, fx.Node) else a for a in node.args]
            if not any(isinstance(self._fact(a), TensorFact) for a in node.all_input_nodes):
                return cast("int | float", node.target(*args))
        fact = self._fact(node)
        if isinstance(fact, int | float):
            return fact
        raise InternalError(f"surgery at {node.name}: expected a symbolic size, got {fact}.")

    def _fact(self, node: fx.Node) -> object:
        return self.survivors.analysis.captured.facts.get(node.name)

    def sources(self, node: fx.Node, dim: int) -> torch.Tensor:
        """Where each kept position of the result lies among the kept positions of the input.

        int64 of shape (kept of the result,), found by running the op on position numbers.
        """
        source, result = self.before(node.args[0]), self.before(node)
        origin = self._origins(node, dim)
        kept_in = self.survivors.along(source).get(dim, torch.arange(source.shape[dim]))
        kept_out = self.survivors.along(result).get(dim, torch.arange(result.shape[dim]))
        wanted = origin[kept_out]
        found = torch.searchsorted(kept_in, wanted).clamp_max(len(kept_in) - 1)
        if not torch.equal(kept_in[found], wanted):
            raise InternalError(
                f"surgery at {node.name}: expected every kept position to come from a kept one, "
                "got one that was removed.",
                where=node.name,
            )
        return found

    def is_identity(self, node: fx.Node, dim: int) -> bool:
        """Whether the op leaves positions along `dim` where they are."""
        return torch.equal(
            self._origins(node, dim), torch.arange(self.before(node.args[0]).shape[dim])
        )

    def _origins(self, node: fx.Node, dim: int) -> torch.Tensor:
        source = self.before(node.args[0])
        shape = [1] * len(source.shape)
        shape[dim] = source.shape[dim]
        tags = torch.arange(source.shape[dim]).reshape(shape).expand(source.shape)
        args = [self.literal(argument) for argument in node.args[1:]]
        target = cast("torch._ops.OpOverload", node.target)
        moved = target(tags, *args, **node.kwargs)
        for other in range(moved.dim()):
            if other != dim:
                moved = moved.narrow(other, 0, 1)
        return cast(torch.Tensor, moved.reshape(-1))

    def literal(self, argument: object) -> object:
        """An argument as the dense graph has it: constants of the model for their nodes."""
        if isinstance(argument, list | tuple):
            return [self.literal(member) for member in argument]
        if not isinstance(argument, fx.Node):
            return argument
        constant = constant_behind(argument)
        if constant is None:
            raise InternalError(
                f"surgery at {argument.name}: expected a number or a constant, got a value "
                f"computed by {argument.target}.",
                where=argument.name,
            )
        return attribute(self.survivors.analysis.captured.module, str(constant.target))

    def gather(self, node: fx.Node, dim: int, positions: torch.Tensor) -> None:
        """Turn the node into index_select over `positions` (in place)."""
        index = self._index(node, dim, positions)
        before = node.all_input_nodes
        node.target = aten.index_select.default
        node.args = (node.args[0], dim, index)
        node.kwargs = {}
        for old in before:
            # The positions that an earlier surgery gathered: their name now holds the new ones.
            if old.op == "get_attr" and not old.users:
                self.module.graph.erase_node(old)

    def gather_before(self, node: fx.Node, dim: int, positions: torch.Tensor) -> None:
        """Put an index_select over `positions` before the node, which stays (in place)."""
        index = self._index(node, dim, positions)
        with self.module.graph.inserting_before(node):
            gathered = self.module.graph.create_node(
                "call_function", aten.index_select.default, (node.args[0], dim, index)
            )
        gathered.meta = dict(node.meta)
        node.update_arg(0, gathered)

    def _index(self, node: fx.Node, dim: int, positions: torch.Tensor) -> fx.Node:
        """A constant of the graph, named after its node: a second surgery replaces it."""
        name = f"{node.name}_{_INDEX}_{dim}"
        self.module.register_buffer(name, positions, persistent=False)
        with self.module.graph.inserting_before(node):
            index = self.module.graph.create_node("get_attr", name)
        index.meta = dict(node.meta)
        return index

    def scale(self, node: fx.Node, factor: float) -> None:
        """Multiply the node's result by `factor`; a multiplication that is there takes it in.

        So pruning again does not lengthen the graph: it is told by what it does, because notes do
        not outlive a capture or a file.
        """
        users = list(node.users)
        if len(users) == 1 and users[0].target is aten.mul.Scalar:
            source, number = users[0].args
            if source is node and isinstance(number, int | float):
                users[0].update_arg(1, number * factor)
                return
        self._behind(node, aten.mul.Scalar, factor)

    def limit(self, node: fx.Node, target: OpOverload) -> None:
        """Put clamp_min or clamp_max with 0 behind the node, unless it stands there."""
        users = list(node.users)
        if len(users) != 1 or users[0].target is not target or users[0].args != (node, 0.0):
            self._behind(node, target, 0.0)

    def _behind(self, node: fx.Node, target: OpOverload, number: float) -> None:
        with self.module.graph.inserting_after(node):
            added = self.module.graph.call_function(target, (node, number))
        added.meta = {**node.meta, "scales": node.name}
        self._stands_for[added.name] = node.name
        node.replace_all_uses_with(added)
        added.update_arg(0, node)
