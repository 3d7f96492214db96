"""Which dims of tensors make a width and which only read it.

A convolution's weight makes the width of its output (dim 0) and reads that of its input (dim 1):
both lose positions, but a person who says "the width of layer4" means those that layer4 makes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import fx

from edgeprune.graph.module import CapturedModule
from edgeprune.graph.propagate import Walk


def making_axes(found: Walk, module: CapturedModule, ranks: Mapping[str, int]) -> frozenset[int]:
    """Indices into `found.labels.axes` of the dims of matrices and kernels that make a width.

    `ranks`: number of dims by tensor name. Vectors (a bias, a norm) follow the width of another.
    """
    reading = reading_axes(found, module)
    return frozenset(
        index
        for index, axis in enumerate(found.labels.axes)
        if axis.is_parameter and index not in reading and ranks[axis.owner] > 1
    )


def reading_axes(found: Walk, module: CapturedModule) -> frozenset[int]:
    """Indices into `found.labels.axes` of the tensor dims that a contraction sums over.

    Found where a reader was recorded: what it joined with its input there, on the side that no
    input of the model reaches, are the dims of its weight.
    """
    constant = _constants(module.graph)
    nodes = {node.name: node for node in module.graph.nodes}
    labels = found.labels
    starts = np.array([axis.first_label for axis in labels.axes], dtype=np.int64)
    joins: dict[str, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}
    for one, two, name in labels.joined({edge.node for edge in found.edges}):
        joins.setdefault(name, []).append((one, two))
    reading: set[int] = set()
    for edge in found.edges:
        node = nodes[edge.node]
        mine = edge.layer.reshape(-1).numpy()
        operand = node.args[edge.operand]
        if isinstance(operand, fx.Node) and operand in constant:
            reading |= _axes_of(mine, starts)
        elif any(source in constant for source in node.all_input_nodes):
            for sides in joins.get(edge.node, []):
                for side, other in (sides, sides[::-1]):
                    if np.array_equal(side, mine):
                        reading |= _axes_of(other, starts)
    return frozenset(i for i in reading if labels.axes[i].is_parameter)


def _axes_of(labels: NDArray[np.int64], starts: NDArray[np.int64]) -> set[int]:
    real = labels[labels > 0]
    return set((np.searchsorted(starts, real, side="right") - 1).tolist())


def _constants(graph: fx.Graph) -> frozenset[fx.Node]:
    """Nodes that no input of the model reaches: weights, and what is made of weights alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" or (sources and all(source in found for source in sources)):
            found.add(node)
    return frozenset(found)
