"""The walk: one loop over the graph that hands every node to its rule."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx

from edgeprune.errors import InternalError
from edgeprune.graph.aliases import shared_writes
from edgeprune.graph.capture import Captured
from edgeprune.graph.labels import Labels, Value, varying
from edgeprune.graph.module import attribute, first_names
from edgeprune.graph.observe import Fact, TensorFact
from edgeprune.graph.registry import rule_for
from edgeprune.graph.rules.every import FAMILIES
from edgeprune.graph.trace import Choice, Edge, Redefinition, Trace

aten = torch.ops.aten

Labelled: TypeAlias = "Value | tuple[Labelled, ...] | int | float | bool | str | None"

# Ops with no tensor result that depend on no position's value.
_SIZES = (aten.sym_size.int, aten.sym_numel.default, aten._assert_tensor_metadata.default)


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What one walk found: the label of every position of every value, and what ties them.

    `stepwise` names the nodes that pin as one operator and need not once written in steps.
    """

    labels: Labels
    values: Mapping[str, Labelled]
    edges: tuple[Edge, ...]
    redefinitions: tuple[Redefinition, ...]
    boxes: tuple[tuple[str, torch.Tensor], ...]
    stepwise: tuple[str, ...]
    unknown: tuple[str, ...]
    choices: tuple[Choice, ...] = ()


def walk(
    captured: Captured, *, exact_only: bool = False, flipped: frozenset[str] = frozenset()
) -> Walk:
    """Label every value of the captured graph.

    `flipped` names nodes at which the other one of heads and head dim is to be offered.
    """
    if not FAMILIES:
        raise RuntimeError("no rule is registered")
    return _Walker(captured, exact_only, flipped).run()


class _Walker:
    def __init__(self, captured: Captured, exact_only: bool, flipped: frozenset[str]) -> None:
        self.captured = captured
        module = captured.module
        written = shared_writes(module.graph)
        self.trace = Trace(module, Labels(), captured.facts, exact_only, written, flipped=flipped)
        self.values: dict[str, Labelled] = {}
        self.by_tensor: dict[int, Value] = {}
        self.names = first_names(module)
        self.read = {
            id(attribute(module, str(node.target)))
            for node in module.graph.nodes
            if node.op == "get_attr" and node.users
        }
        self.boxes: list[tuple[str, torch.Tensor]] = []
        self.unknown: list[str] = []

    def run(self) -> Walk:
        for node in self.captured.module.graph.nodes:
            self.trace.at(node)
            value = self._visit(node)
            self.values[node.name] = value
            self._check(node, value, self.captured.facts.get(node.name))
        return Walk(
            labels=self.trace.labels,
            values=self.values,
            edges=tuple(self.trace.edges),
            redefinitions=tuple(self.trace.redefinitions),
            boxes=tuple(self.boxes),
            stepwise=tuple(dict.fromkeys(self.trace.stepwise)),
            unknown=tuple(dict.fromkeys(self.unknown)),
            choices=tuple(self.trace.choices),
        )

    def _visit(self, node: fx.Node) -> Labelled:
        match node.op:
            case "placeholder":
                return self._unlabelled(self.captured.facts[node.name])
            case "get_attr":
                return self._attribute(node)
            case "output":
                for source in node.all_input_nodes:
                    # The cause is the node that made the output: it has a source line.
                    self.trace.at(source)
                    self._pin_value(self.values[source.name], "is an output of the model")
                return None
            case "call_function":
                return self._call(node)
            case _:
                raise InternalError(
                    f"analysis at {node.name}: expected a call_function node, got {node.op}."
                )

    def _unlabelled(self, fact: Fact) -> Labelled:
        if isinstance(fact, TensorFact):
            return Value(fact.shape)
        if isinstance(fact, tuple):
            return tuple(self._unlabelled(member) for member in fact)
        return fact

    def _attribute(self, node: fx.Node) -> Labelled:
        tensor = attribute(self.captured.module, str(node.target))
        if not isinstance(tensor, torch.Tensor):
            return self._unlabelled(self.captured.facts[node.name])
        if id(tensor) not in self.by_tensor:
            self.by_tensor[id(tensor)] = self._label(tensor, str(node.target))
        return self.by_tensor[id(tensor)]

    def _label(self, tensor: torch.Tensor, target: str) -> Value:
        """One layer for each dim of a tensor that is read; tied ones get one set of labels."""
        shape = tuple(tensor.shape)
        if id(tensor) not in self.read:
            # Nothing reads it in eval mode: nothing can say what it needs.
            return Value(shape)
        owner = self.names.get(id(tensor), target)
        layers = []
        for dim, size in enumerate(shape):
            if size > 1:
                fresh = self.trace.labels.fresh(owner, dim, size, is_parameter=True)
                layers.append(fresh.reshape([size if d == dim else 1 for d in range(len(shape))]))
        return Value(shape, tuple(layers))

    def _call(self, node: fx.Node) -> Labelled:
        fact = self.captured.facts[node.name]
        if node.target is operator.getitem:
            container = self._resolve(node.args[0])
            index = node.args[1]
            if isinstance(container, tuple) and isinstance(index, int):
                return container[index]
        if not _has_tensor(fact):
            if node.target not in _SIZES and node.target is not operator.getitem:
                self._pin_inputs(node, "a number is computed from it")
            return self._unlabelled(fact)
        rule = rule_for(node.target)
        if rule is None:
            # Where no label comes in (a grid of positions), nothing has to be known of it.
            if any(layers_of(self.values[source.name]) for source in node.all_input_nodes):
                self.unknown.append(str(node.target))
            self._pin_inputs(node, f"{node.target} has no rule")
            return self._unlabelled(fact)
        args = [self._resolve(arg) for arg in node.args]
        kwargs = {name: self._resolve(arg) for name, arg in node.kwargs.items()}
        return rule(self.trace, *args, **kwargs)

    def _resolve(self, argument: object) -> Labelled:
        if isinstance(argument, fx.Node):
            return self.values[argument.name]
        if isinstance(argument, list | tuple):
            return tuple(self._resolve(member) for member in argument)
        return argument  # type: ignore[return-value]  # a literal of the graph

    def _pin_inputs(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            self._pin_value(self.values[source.name], reason)

    def _pin_value(self, value: Labelled, reason: str) -> None:
        if isinstance(value, Value):
            self.trace.pin(value, reason)
        elif isinstance(value, tuple):
            for member in value:
                self._pin_value(member, reason)

    def _check(self, node: fx.Node, value: Labelled, fact: Fact) -> None:
        """The rule's shape is the real one, and where labels form a box its sides are noted."""
        if isinstance(value, tuple) and isinstance(fact, tuple):
            for member, part in zip(value, fact, strict=True):
                self._check(node, member, part)
        if not isinstance(value, Value) or not isinstance(fact, TensorFact):
            return
        if value.shape != fact.shape:
            raise InternalError(
                f"analysis at {node.name} ({node.meta.get('where')}): expected shape "
                f"{fact.shape}, got {value.shape} from the rule of {node.target}.",
                where=node.name,
            )
        for layer in value.layers:
            if len(varying(layer)) > 1:
                self.boxes.append((node.name, layer))


def layers_of(value: Labelled) -> tuple[torch.Tensor, ...]:
    """Every layer of a value, or of the members of a tuple of values."""
    if isinstance(value, Value):
        return value.layers
    if isinstance(value, tuple):
        return tuple(layer for member in value for layer in layers_of(member))
    return ()


def _has_tensor(fact: Fact) -> bool:
    if isinstance(fact, tuple):
        return any(_has_tensor(member) for member in fact)
    return isinstance(fact, TensorFact)
