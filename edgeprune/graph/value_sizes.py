"""Which values of a graph have sizes that follow values: the number of boxes that a detector keeps.

Such a size says nothing about labels: the example's is one of many, and a removal changes it
because it changes the values.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from edgeprune.graph.observe import Facts, TensorFact

aten = torch.ops.aten

_TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
# torch tags these by what they are made of, not by name.
_UNTAGGED = {
    aten.where.default,
    aten.nonzero_numpy.default,
    aten.repeat_interleave.self_Tensor,
}


def sized_by_values(graph: fx.Graph, facts: Facts) -> frozenset[str]:
    """Names of the nodes downstream of one whose number of elements follows values.

    A mask that selects, a search for what is not zero, a number read from a tensor, and whatever
    an operator outside of aten may do (torchvision.nms).
    """
    found: set[str] = set()
    for node in graph.nodes:
        if any(source.name in found for source in node.all_input_nodes) or _starts(node, facts):
            found.add(node.name)
    return frozenset(found)


def _starts(node: fx.Node, facts: Facts) -> bool:
    operator = node.target
    if not isinstance(operator, OpOverload):
        return False
    if operator is aten.index.Tensor:  # tagged, but a table of integers has one size
        kinds = (facts.get(index.name) for index in node.all_input_nodes[1:])
        return any(
            isinstance(kind, TensorFact) and kind.dtype in (torch.bool, torch.uint8)
            for kind in kinds
        )
    return (
        operator.namespace not in ("aten", "prims")
        or operator in _UNTAGGED
        or not _TAGS.isdisjoint(operator.tags)
    )
