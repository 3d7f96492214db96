"""What a rule may do: read the current node, join, tie, pin, declare a reader.

A rule never decides alone whether two operands fit: `meet` is the only place where values come
together, so the check for an operand without a label beside one with is made once, for all rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx
from torch._ops import OpOverload

from edgeprune.graph.labels import Cause, Labels, Value, varying
from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.observe import Facts, TensorFact


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """A reader contracts operand `operand` of `node` over a removable axis.

    To silence units, multiply the operand by `kept[layer]` on this edge. Where the argument is a
    list of tensors, `member` says which of them.
    """

    node: str
    operand: int
    layer: torch.Tensor
    member: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Redefinition:
    """`node` computes a statistic over a removable axis and is to use the kept positions only."""

    node: str
    formula: str
    layer: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """At `node` either whole heads or the positions inside them could go: `layer` was preferred.

    `heads` says which of the two `layer` is.
    """

    node: str
    heads: bool
    layer: torch.Tensor


@dataclass(slots=True)
class Trace:
    """State of one walk over the graph. `at` moves it from node to node.

    `written` names the nodes whose storage an in-place op writes, through whatever view;
    `flipped` those where the usual choice between heads and head dim offers nothing.
    """

    module: CapturedModule
    labels: Labels
    facts: Facts
    exact_only: bool = False
    written: frozenset[str] = frozenset()
    edges: list[Edge] = field(default_factory=list)
    redefinitions: list[Redefinition] = field(default_factory=list)
    flipped: frozenset[str] = frozenset()
    choices: list[Choice] = field(default_factory=list)
    stepwise: list[str] = field(default_factory=list)
    _node: fx.Node | None = None

    def at(self, node: fx.Node) -> None:
        """From now on `node` is the one whose rule runs."""
        self._node = node
        self.labels.at = node.name

    @property
    def node(self) -> fx.Node:
        """The node whose rule runs now."""
        if self._node is None:
            raise RuntimeError("a rule runs only at a node")
        return self._node

    @property
    def target(self) -> OpOverload:
        """The overload whose rule runs now."""
        target = self.node.target
        if not isinstance(target, OpOverload):
            raise RuntimeError(f"{self.node.name} does not call an ATen overload")
        return target

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this node's result at the example inputs."""
        fact = self.facts[self.node.name]
        if not isinstance(fact, TensorFact):
            raise RuntimeError(f"{self.node.name} does not result in a tensor")
        return fact.shape

    def constant(self, argument: object) -> torch.Tensor | None:
        """The tensor behind a node that reads a parameter, buffer or constant; else None."""
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        found = attribute(self.module, str(argument.target))
        return found if isinstance(found, torch.Tensor) else None

    def cause(self, reason: str, *, by_nature: bool = False) -> Cause:
        """A cause at the current node."""
        node = self.node
        return Cause(reason, node.name, str(node.meta.get("where", "")), by_nature)

    def created(self, value: Value, dims: tuple[int, ...]) -> Value:
        """A tensor that this node makes: fresh labels along `dims`, so its size can follow."""
        layers = tuple(
            _along(
                self.labels.fresh(self.node.name, dim, value.shape[dim], is_parameter=False),
                dim,
                value,
            )
            for dim in dims
            if value.shape[dim] > 1
        )
        return Value(value.shape, (*value.layers, *layers))

    def pin(self, value: Value, reason: str, *, by_nature: bool = False) -> None:
        """Nothing along any axis of `value` may be removed."""
        for layer in value.layers:
            self.labels.pin(layer, self.cause(reason, by_nature=by_nature))

    def tie(self, layer: torch.Tensor, dims: tuple[int, ...], reason: str) -> None:
        """Positions of `layer` along `dims` stand or fall together."""
        self.labels.tie(layer, dims, self.cause(reason))

    def read(self, operand: int, layer: torch.Tensor, member: int = 0) -> None:
        """The current node contracts its argument number `operand` over `layer`."""
        self.edges.append(Edge(self.node.name, operand, layer, member))

    def redefine(self, layer: torch.Tensor, formula: str) -> None:
        """The current node's statistic is to be taken over the kept positions of `layer`."""
        self.redefinitions.append(Redefinition(self.node.name, formula, layer))

    def prefers_heads(self, layer: torch.Tensor, *, usually: bool) -> bool:
        """Whether whole heads of `layer` are the units here, or else positions inside them.

        `usually` is the policy; the other way is taken at a node where that offers nothing.
        """
        heads = usually != (self.node.name in self.flipped)
        self.choices.append(Choice(self.node.name, heads, layer))
        return heads

    def in_steps(self, layer: torch.Tensor, reason: str) -> None:
        """As one operator the current node would pin `layer`; in steps it need not.

        The node is written out as its steps (`graph/steps.py`) and the graph is walked again.
        """
        self.labels.pin(layer, self.cause(reason))
        self.stepwise.append(self.node.name)

    def meet(
        self, *values: Value, reason: str = "meets a value of full size that cannot shrink"
    ) -> Value:
        """Values that meet element by element, broadcasting as NumPy does.

        x (2, 8, 5, 5) with labels along dim 1 and g (2, 8, 1, 1) with its own: x's channel 3 and
        g's channel 3 become one unit. A scalar or a dim of size 1 imposes nothing. An operand
        that is full along a labelled axis but has no label there cannot shrink, so it pins.
        """
        shape = np.broadcast_shapes(*(value.shape for value in values))
        aligned = [_align(value, len(shape)) for value in values]
        operands = [
            self._uncrossed(value, aligned[:index] + aligned[index + 1 :])
            for index, value in enumerate(aligned)
        ]
        merged: list[tuple[int, torch.Tensor]] = []
        for index, value in enumerate(operands):
            for layer in value.layers:
                left = layer
                for position, other in enumerate(operands):
                    if position != index:
                        self._match(layer, value, other, reason)
                        left = _first(left, self._stuck(layer, other))
                _merge(merged, index, left)
        return self.settle(Value(shape, tuple(layer for _, layer in merged)))

    def _match(self, layer: torch.Tensor, own: Value, other: Value, reason: str) -> None:
        """Tie one layer of `own` to `other`, or pin it where the two cannot shrink together."""
        shared = [dim for dim in varying(layer) if other.shape[dim] > 1]
        if not shared:
            return
        if self._is_repeat(layer, own):
            self.labels.pin(layer, self.cause("repeats positions that have units", by_nature=True))
            return
        stuck = self._stuck(layer, other)
        if set(varying(layer)) <= set(stuck):
            self.labels.pin(layer, self.cause(reason))
            return
        # Heads that meet one table of full size without labels keep their number, not their dims.
        self.tie(layer, stuck, reason)
        for partner in self._able(other):
            mine = _first(layer, stuck)
            yours = _first(partner, self._stuck(partner, own))
            if set(varying(mine)) & set(varying(yours)):
                self._pair(mine, yours)

    def _able(self, value: Value) -> list[torch.Tensor]:
        """Layers of a value that say what of it can go."""
        return [layer for layer in value.layers if not self._is_repeat(layer, value)]

    def _stuck(self, layer: torch.Tensor, other: Value) -> tuple[int, ...]:
        """Dims of `layer` along which `other` is of full size and has no labels."""
        able = {dim for partner in self._able(other) for dim in varying(partner)}
        return tuple(d for d in varying(layer) if other.shape[d] > 1 and d not in able)

    def _uncrossed(self, value: Value, others: list[Value]) -> Value:
        """A value; where two of its layers cross on one axis that is met, with one of them only.

        Heads (0, 0, 1, 1) and columns (0, 1, 0, 1) laid on one axis: a position that meets a
        weight would belong to a head and to a column. Whole heads go, columns stay; the other way
        round where no head can go.
        """
        layers = list(value.layers)
        for inner in value.layers:
            dims = varying(inner)
            if len(dims) != 1 or all(other.shape[dims[0]] == 1 for other in others):
                continue
            for outer in self._able(value):
                if not _crosses(outer, inner, dims[0]):
                    continue
                stays = inner if self.prefers_heads(outer, usually=True) else outer
                self.labels.pin(stays, self.cause("lies across units on the same axis"))
                layers = [layer for layer in layers if layer is not stays]
        return Value(value.shape, tuple(layers))

    def _is_repeat(self, layer: torch.Tensor, own: Value) -> bool:
        """Whether `layer` counts copies made here of positions that another layer names.

        Keys of 2 heads expanded to 4: the copies (0, 1, 0, 1) and the heads (0, 0, 1, 1) share an
        axis; the heads are the units, the number of copies stays.
        """
        if not self.labels.is_created(layer):
            return False
        dims = set(varying(layer))
        return any(
            dims & set(varying(sibling)) and not self.labels.is_created(sibling)
            for sibling in own.layers
        )

    def _pair(self, one: torch.Tensor, two: torch.Tensor) -> None:
        """Join two layers; whole heads first where only one of them varies along heads.

        A box (head, dim) that meets a table along dim alone (rotary embedding, a norm inside a
        head) is tied within each head and the table stays: otherwise one dim would tie all heads.
        Not where the outer positions are tied already (branches under a softmax): no heads.
        """
        for box, table in ((one, two), (two, one)):
            inner = [dim for dim in varying(table) if box.shape[dim] > 1]
            if self._stays_outside(box, table):
                why = "the positions inside it are the units"
                self.tie(box, varying(table), why)
                self.labels.pin(table, self.cause(why))
                return
            if len(varying(box)) > 1 and inner and inner[0] != varying(box)[0]:
                outer = tuple(dim for dim in varying(box) if dim not in varying(table))
                if set(varying(table)) - set(varying(box)) or self.labels.tied(box, outer):
                    continue
                if not self.prefers_heads(box, usually=True):
                    break
                why = "one table serves every head"
                self.tie(box, tuple(inner), why)
                self.labels.pin(table, self.cause(why))
                return
        self.labels.join(one, two)

    def _stays_outside(self, box: torch.Tensor, table: torch.Tensor) -> bool:
        """Whether `table` numbers the outer part of a box of which the inner part was chosen.

        A table (6, 64) of shifts and scales that is added to a box (6, 64): its 6 or its 64 may go.
        """
        ours, theirs = varying(box), varying(table)
        is_outer = bool(theirs) and theirs == ours[: len(theirs)] and len(theirs) < len(ours)
        return is_outer and self.node.name in self.flipped

    def settle(self, value: Value) -> Value:
        """Drop layers that no longer vary; a label that covers a whole value pins its unit."""
        layers = []
        for layer in value.layers:
            if varying(layer):
                layers.append(layer)
            else:
                self.labels.pin(layer, self.cause("a single position of it is picked out"))
        return Value(value.shape, tuple(layers))


def _first(layer: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    for dim in dims:
        layer = layer.narrow(dim, 0, 1)
    return layer


def _crosses(outer: torch.Tensor, inner: torch.Tensor, dim: int) -> bool:
    """Whether `outer` is constant in runs along `dim` and `inner` the same in each of them."""
    if varying(outer) != (dim,) or outer is inner:
        return False
    one, two = outer.reshape(-1), inner.reshape(-1)
    run = int((one == one[0]).sum())
    if run in (1, len(one)) or len(one) % run:
        return False
    rows, columns = one.reshape(-1, run), two.reshape(-1, run)
    return bool((rows == rows[:, :1]).all()) and bool((columns == columns[:1]).all())


def _along(labels: torch.Tensor, dim: int, value: Value) -> torch.Tensor:
    shape = [1] * len(value.shape)
    shape[dim] = value.shape[dim]
    return labels.reshape(shape)


def _align(value: Value, ndim: int) -> Value:
    """Left-pad shape and layers with dims of size 1."""
    missing = ndim - len(value.shape)
    if missing == 0:
        return value
    ones = (1,) * missing
    layers = tuple(layer.reshape(ones + tuple(layer.shape)) for layer in value.layers)
    return Value(ones + value.shape, layers)


def _merge(merged: list[tuple[int, torch.Tensor]], operand: int, layer: torch.Tensor) -> None:
    """Add a layer unless one of another operand, now joined with it, tells at least as much.

    Two layers of one operand are never joined by meeting others, so both stay.
    """
    dims = set(varying(layer))
    for index, (owner, present) in enumerate(merged):
        have = set(varying(present))
        if owner == operand or not dims & have:
            continue
        if dims <= have:
            return
        if have < dims:
            merged[index] = (operand, layer)
            return
    merged.append((operand, layer))
