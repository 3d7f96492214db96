"""What a refitted reader is to give: the dense layer's output, or what a sum still misses.

Where the reader's output is added to another branch (a residual connection), that branch may carry
errors of its own, which nothing after the sum can tell apart. So the goal is then the dense sum
minus the shrunk model's other branch, as He et al. 2017 (arXiv 1707.06168, section 3.2) do for
residual nets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from edgeprune.errors import InternalError
from edgeprune.graph.labels import Value
from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.observe import TensorFact
from edgeprune.surgery.survivors import Survivors

aten = torch.ops.aten

_SUMS = (aten.add.Tensor, aten.add_.Tensor)
_UNCHANGED = (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.dropout_.default,
)

# A channel that a norm scales by less hardly reaches the sum: its goal would be noise, blown up.
_LEAST_SCALE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Goal:
    """`reached` is the node whose dense value tells the goal: the reader, or the sum behind it.

    `other` is the sum's other operand. Between the reader and the sum lies at most a norm with
    fixed statistics, `scale` · y + `shift` a channel (both broadcast to the reader's output).
    """

    node: fx.Node
    reached: fx.Node
    other: fx.Node | None = None
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def wanted(
        self, left: Survivors, dense: torch.Tensor, values: dict[fx.Node, object]
    ) -> torch.Tensor:
        """What `heard` should give: the dense value at kept positions, less the other branch."""
        labelled = left.analysis.walk.values[self.reached.name]
        if not isinstance(labelled, Value):
            raise InternalError(f"repair at {self.node.name}: expected one tensor.")
        for dim, positions in left.along(labelled).items():
            dense = dense.index_select(dim, positions.to(dense.device))
        if self.other is None:
            return dense
        other = cast(torch.Tensor, values[self.other])
        return dense.to(other.device) - other

    def heard(self, output: torch.Tensor) -> torch.Tensor:
        """What of the reader's output arrives at the sum."""
        if self.scale is None or self.shift is None:
            return output
        return self.scale * output + self.shift

    def asked(self, wanted: torch.Tensor, output: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The output that would give `wanted`; where it is hardly heard, the output as it is."""
        if self.scale is None or self.shift is None:
            return wanted
        loud = self.scale.abs() >= _LEAST_SCALE * self.scale.abs().max()
        safe = torch.where(loud, self.scale, torch.ones_like(self.scale))
        exact = (wanted - self.shift) / safe
        return exact if bool(loud.all()) else torch.where(loud, exact, output())


def goal_of(left: Survivors, module: CapturedModule, node: fx.Node, fence: int) -> Goal:
    """The goal of the reader `node` of the shrunk graph.

    The sum counts only if its other operand is known before the reader runs, and if it comes
    before node number `fence`, where the next reader starts.
    """
    places = {each: place for place, each in enumerate(module.graph.nodes)}
    scale, shift = None, None
    current = node
    while len(current.users) == 1:
        (user,) = current.users
        if user.target in _UNCHANGED and user.args[0] is current:
            current = user
        elif user.target is aten.batch_norm.default and scale is None:
            if user.args[0] is not current:
                break
            scale, shift = _affine(module, user, _rank(left, node))
            if scale is None:
                break
            current = user
        elif user.target in _SUMS and places[user] < fence and not user.kwargs:
            other = user.args[1] if user.args[0] is current else user.args[0]
            if not isinstance(other, fx.Node) or places[other] >= places[node]:
                break
            if not _same_shape(left, node, user, other):
                break
            return Goal(node=node, reached=user, other=other, scale=scale, shift=shift)
        else:
            break
    return Goal(node=node, reached=node)


def _rank(left: Survivors, node: fx.Node) -> int:
    fact = left.analysis.captured.facts[node.name]
    return len(fact.shape) if isinstance(fact, TensorFact) else 0


def _same_shape(left: Survivors, *nodes: fx.Node) -> bool:
    """Nothing is broadcast: all are tensors of one shape in the dense graph."""
    facts = [left.analysis.captured.facts.get(node.name) for node in nodes]
    shapes = {fact.shape for fact in facts if isinstance(fact, TensorFact)}
    return len(shapes) == 1 and all(isinstance(fact, TensorFact) for fact in facts)


def _affine(
    module: CapturedModule, norm: fx.Node, rank: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Scale and shift of a batch norm in eval mode, for channels along dim 1; None if computed."""
    if any(isinstance(a, fx.Node) and a.op != "get_attr" for a in norm.args[1:5]):
        return None, None
    tensors = []
    for argument in norm.args[1:5]:
        found = (
            attribute(module, str(argument.target))
            if isinstance(argument, fx.Node) and argument.op == "get_attr"
            else None
        )
        tensors.append(found.detach() if isinstance(found, torch.Tensor) else None)
    weight, bias, mean, variance = tensors
    if mean is None or variance is None or norm.args[5] is True:
        return None, None
    scale = torch.rsqrt(variance + cast(float, norm.args[7]))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    shift = shift if bias is None else shift + bias
    shape = (1, -1) + (1,) * (rank - 2)
    return scale.reshape(shape), shift.reshape(shape)
