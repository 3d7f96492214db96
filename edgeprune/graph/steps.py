"""Write operators that take a statistic over a removable axis as the steps they consist of.

`aten.var` cannot lose positions of the axis it is taken over: it would count what is left. As
means of squares, the mean is rewritten to a sum over what is kept by the dense count, which is
exact, and pruning again finds the same steps. Only what a walk asked for is written so.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Argument

from edgeprune.graph.capture import Captured
from edgeprune.graph.comparison import relative_error
from edgeprune.graph.inputs import Inputs, clone, resize_batch
from edgeprune.graph.module import CapturedModule
from edgeprune.graph.observe import TensorFact, observe
from edgeprune.graph.rules.spread import (
    DEVIATIONS,
    DEVIATIONS_AND_MEANS,
    VARIANCES,
    VARIANCES_AND_MEANS,
    spread_of,
)
from edgeprune.recipe.trial import same_buffers

aten = torch.ops.aten

# The steps round differently from the operator, no more.
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes nodes before `node`, with its module path and source line."""

    graph: fx.Graph
    node: fx.Node
    operand: TensorFact

    def call(self, target: OpOverload, *args: Argument) -> fx.Node:
        with self.graph.inserting_before(self.node):
            made = self.graph.call_function(target, args)
        made.meta = dict(self.node.meta)
        return made

    def stand_in(self, result: fx.Node) -> None:
        """`result` in place of the node, which goes."""
        self.node.replace_all_uses_with(result)
        self.graph.erase_node(self.node)


Steps: TypeAlias = Callable[[_Writer], None]

_STEPS: dict[OpOverload, Steps] = {}


def _steps(*overloads: OpOverload) -> Callable[[Steps], Steps]:
    def register(function: Steps) -> Steps:
        _STEPS.update(dict.fromkeys(overloads, function))
        return function

    return register


def in_steps(captured: Captured, names: tuple[str, ...]) -> Captured:
    """The same capture with the named nodes written in steps.

    Compared on the example, and on one sample more where the batch is dynamic: where the steps
    give something else (a count that depends on the batch), the capture is returned as it was.
    """
    module = copy.deepcopy(captured.module)
    nodes = {node.name: node for node in module.graph.nodes}
    for name in names:
        node = nodes[name]
        operand = captured.facts[node.all_input_nodes[0].name]
        if isinstance(node.target, OpOverload) and isinstance(operand, TensorFact):
            _STEPS[node.target](_Writer(module.graph, node, operand))
    module.graph.lint()
    module.recompile()
    trials = [captured.inputs]
    if captured.dynamic_batch and captured.inputs.batch_size is not None:
        trials.append(resize_batch(captured.inputs, captured.inputs.batch_size + 1))
    if not all(_agree(captured.module, module, trial) for trial in trials):
        return captured
    example = clone(captured.inputs)
    with same_buffers(module):
        _, facts = observe(module, example.args, example.kwargs)
    return replace(captured, module=module, facts=facts)


def _agree(one: CapturedModule, two: CapturedModule, inputs: Inputs) -> bool:
    results = []
    for module in (one, two):
        copies = clone(inputs)
        with same_buffers(module):
            outputs, _ = observe(module, copies.args, copies.kwargs)
        results.append([o for o in outputs if isinstance(o, torch.Tensor)])
    return all(
        want.shape == have.shape and relative_error(want, have) <= _TOLERANCE
        for want, have in zip(*results, strict=True)
    )


@_steps(*VARIANCES, *DEVIATIONS, *VARIANCES_AND_MEANS, *DEVIATIONS_AND_MEANS)
def _spread(write: _Writer) -> None:
    """var(x, [1], correction=1) of 8 -> mean((x - mean x)^2) * 8 / 7; std -> its root."""
    node = write.node
    if not isinstance(node.target, OpOverload):
        raise TypeError(f"{node.name} does not call an ATen overload")
    asked = spread_of(node.target, write.operand.shape, node.args[1:], node.kwargs)
    x, dims = node.args[0], list(asked.dims)
    centred = write.call(aten.sub.Tensor, x, write.call(aten.mean.dim, x, dims, True))
    squares = write.call(aten.mul.Tensor, centred, centred)
    result = write.call(aten.mean.dim, squares, dims, asked.keepdim)
    if asked.correction:
        factor = asked.count / (asked.count - asked.correction)
        result = write.call(aten.mul.Scalar, result, factor)
    if node.target in (*DEVIATIONS, *DEVIATIONS_AND_MEANS):
        result = write.call(aten.sqrt.default, result)
    if node.target in (*VARIANCES, *DEVIATIONS):
        write.stand_in(result)
        return
    mean = write.call(aten.mean.dim, x, dims, asked.keepdim)
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise TypeError(f"{user.name} takes both results of {node.name} at once")
        user.replace_all_uses_with((result, mean)[user.args[1]])  # type: ignore[index]
        write.graph.erase_node(user)
    write.graph.erase_node(node)


@_steps(aten.rms_norm.default)
def _rms_norm(write: _Writer) -> None:
    """rms_norm(x, [8], w) -> rms_norm(x, [8], w, 1.19e-07): the smallest step of x's dtype."""
    given = [*write.node.args, *(None for _ in range(4 - len(write.node.args)))]
    write.node.args = (*given[:3], torch.finfo(write.operand.dtype).eps)


@_steps(aten.pairwise_distance.default)
def _pairwise_distance(write: _Writer) -> None:
    """pairwise_distance(a, b, 2, 1e-6) -> vector_norm(a - b + 1e-6, 2, -1)."""
    given = write.node.args
    unsaid: tuple[Argument, ...] = (2.0, 1e-6, False)
    order, eps, keepdim = (*given[2:], *unsaid[len(given) - 2 :])
    apart = write.call(aten.sub.Tensor, given[0], given[1])
    apart = write.call(aten.add.Tensor, apart, eps)
    write.stand_in(write.call(aten.linalg_vector_norm.default, apart, order, [-1], keepdim))
