"""One recurrent operator a layer and direction, instead of one for all of them.

`aten.lstm` of two layers and both directions has one size for the hidden units of all four, and
their states in one tensor (4, batch, hidden): a unit could go only with its namesakes. Written as
four operators, with `flip` and `cat` around them, each has units and a width of its own, and what
lies between them is spelled with operators that have rules (docs/decisions/0012).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument

from edgeprune.graph.aliases import shared_writes
from edgeprune.graph.operators import RECURRENT

aten = torch.ops.aten

_ARGUMENTS = 9
_FILLED = (aten.zeros.default, aten.ones.default, aten.full.default)
_FILLED_AS = (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)
_COPIES = (
    *(aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default),
    *(aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.to.other),
    *(aten._to_copy.default, aten.lift_fresh_copy.default),
)


def unstack(graph: fx.Graph) -> None:
    """Write every recurrent operator as one a layer and direction (in place)."""
    work = _Unstacking(graph, shared_writes(graph))
    for node in list(graph.nodes):
        if node.target in RECURRENT and len(node.args) == _ARGUMENTS and not node.kwargs:
            work.unstack(node)
    work.tidy()


@dataclass(slots=True)
class _Unstacking:
    graph: fx.Graph
    # Values whose storage is written in place: nothing may take a part of them beforehand.
    written: frozenset[str]
    # Final states that were put together here, (layers x directions, batch, hidden), by parts.
    parts: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    added: list[fx.Node] = field(default_factory=list)

    def unstack(self, node: fx.Node) -> None:
        """Replace one operator; one of a single layer and direction stays."""
        x, states, parameters, biases, layers, dropout, train, both, batch_first = node.args
        listed = isinstance(states, list | tuple)
        given = [cast(fx.Node, s) for s in (states if listed else [states])]  # type: ignore[union-attr]
        ways = 2 if both else 1
        count = cast(int, layers) * ways
        if count == 1:
            return
        weights = cast("Sequence[fx.Node]", parameters)
        each = len(weights) // count
        time = 1 if batch_first else 0
        heard = cast(fx.Node, x)
        finals: list[list[fx.Node]] = [[] for _ in given]
        for layer in range(cast(int, layers)):
            if layer and dropout:
                heard = self._add(node, aten.dropout.default, heard, dropout, train)
            sides = []
            for way in range(ways):
                index = layer * ways + way
                own = [self._part(node, state, index) for state in given]
                source = self._add(node, aten.flip.default, heard, [time]) if way else heard
                call = self._add(
                    *(node, node.target, source, own if listed else own[0]),
                    *(list(weights[index * each : (index + 1) * each]), biases, 1, 0.0, train),
                    *(False, batch_first),
                )
                out = self._add(node, operator.getitem, call, 0)
                sides.append(self._add(node, aten.flip.default, out, [time]) if way else out)
                for place, final in enumerate(finals):
                    final.append(self._add(node, operator.getitem, call, place + 1))
            heard = sides[0] if ways == 1 else self._add(node, aten.cat.default, sides, 2)
        for user in list(node.users):
            place = cast(int, user.args[1])
            if place == 0:
                user.replace_all_uses_with(heard)
            else:
                self._replace_final(user, finals[place - 1])
            self.graph.erase_node(user)
        self.graph.erase_node(node)

    def tidy(self) -> None:
        """Erase what was added and nobody reads; the recurrent operators themselves stay."""
        for node in reversed(self.added):
            if not node.users and node.target not in RECURRENT:
                self.graph.erase_node(node)

    def _add(self, before: fx.Node, target: object, *args: object, **kwargs: object) -> fx.Node:
        with self.graph.inserting_before(before):
            new = self.graph.create_node(
                "call_function",
                cast("torch._ops.OpOverload", target),
                cast("tuple[Argument, ...]", args),
                cast("dict[str, Argument]", kwargs),
            )
        new.meta = dict(before.meta)
        self.added.append(new)
        return new

    def _part(self, before: fx.Node, state: fx.Node, index: int) -> fx.Node:
        """Initial state number `index`, (1, batch, hidden), of those in `state`.

        One filled with a number is made anew, so that its width is its own; final states of
        another operator are taken before they were put together; any other is sliced.
        """
        if state in self.parts:
            return self.parts[state][index]
        made = self._made_anew(before, state)
        return made or self._add(before, aten.slice.Tensor, state, 0, index, index + 1)

    def _made_anew(self, before: fx.Node, state: fx.Node) -> fx.Node | None:
        if state.name in self.written:
            return None
        args = list(state.args)
        if (state.target in _COPIES or _adds_inner_dim(state)) and isinstance(args[0], fx.Node):
            source = self._made_anew(before, args[0])
            if source is None:
                return None
            args[0] = source
        elif state.target in _FILLED or state.target in _FILLED_AS:
            place = 0 if state.target in _FILLED else 1
            written = args[place]
            if not isinstance(written, list | tuple) or len(written) < 2:
                return None
            args[place] = [1, *written[1:]]
        else:
            return None
        return self._add(before, state.target, *args, **state.kwargs)

    def _replace_final(self, final: fx.Node, parts: list[fx.Node]) -> None:
        """Give those who pick one layer's final state that one; the others get all, as before."""
        if final.name not in self.written:
            for user in list(final.users):
                picked = self._picked(user, final, parts)
                if picked is not None:
                    user.replace_all_uses_with(picked)
                    self.graph.erase_node(user)
        if final.users:
            whole = self._add(final, aten.cat.default, parts, 0)
            self.parts[whole] = parts
            final.replace_all_uses_with(whole)

    def _picked(self, user: fx.Node, final: fx.Node, parts: list[fx.Node]) -> fx.Node | None:
        """`h[-1]`, `h[2:]` and `h.unbind(0)[1]` of the parts; None for any other use."""
        dim = user.args[1] if len(user.args) > 1 else 0
        if not user.args or user.args[0] is not final or dim not in (0, -3) or user.kwargs:
            return None
        where = user.args[2:]
        if user.target is aten.select.int and isinstance(where[0], int):
            return self._add(user, aten.select.int, parts[where[0]], 0, 0)
        if user.target is aten.slice.Tensor and all(n is None or isinstance(n, int) for n in where):
            bounds = cast("list[int | None]", [*where, *[None] * (3 - len(where))])
            some = parts[slice(*bounds)]
            return some[0] if len(some) == 1 else self._whole(user, some)
        if user.target is aten.unbind.int:
            for member in list(user.users):
                part = parts[cast(int, member.args[1])]
                member.replace_all_uses_with(self._add(member, aten.select.int, part, 0, 0))
                self.graph.erase_node(member)
            return parts[0]  # nobody reads it any more
        return None

    def _whole(self, before: fx.Node, parts: list[fx.Node]) -> fx.Node | None:
        if not parts:
            return None
        whole = self._add(before, aten.cat.default, parts, 0)
        self.parts[whole] = parts
        return whole


def _adds_inner_dim(node: fx.Node) -> bool:
    """The states of one sample: (layers, hidden) to (layers, 1, hidden)."""
    return node.target is aten.unsqueeze.default and bool(node.args[1] == 1)
