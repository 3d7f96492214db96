"""Which dims of tensors make a width and which only read it.

A convolution's weight makes the width of its output (dim 0) and reads that of its input (dim 1):
both lose positions, but a person who says "the width of layer4" means those that layer4 makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from edgeprune.graph.labels import Labels
from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.operators import cell_parameters
from edgeprune.graph.propagate import Walk, layers_of


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

    Found where a reader was recorded: of the positions that it joined there, those that lie in an
    operand which no input of the model reaches, its weight.
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
        if cell_parameters(nodes[edge.node]):
            continue  # one operator makes its width and reads it
        weights = _labels_of(found, [n for n in nodes[edge.node].all_input_nodes if n in constant])
        mine = edge.layer.reshape(-1).numpy()
        sides = [mine]
        for one, two in joins.get(edge.node, []):
            sides += [two] if np.array_equal(one, mine) else []
            sides += [one] if np.array_equal(two, mine) else []
        for side in sides:
            if np.isin(side, weights).all():
                reading |= _axes_of(side, starts)
    cells = {str(p.target) for node in nodes.values() for p in cell_parameters(node)}
    return frozenset(
        index
        for index, axis in enumerate(labels.axes)
        if axis.is_parameter and (index in reading or (axis.owner in cells and axis.dim == 1))
    )


def _labels_of(found: Walk, nodes: list[fx.Node]) -> NDArray[np.int64]:
    """Every label of the values of these nodes."""
    layers = [layer for node in nodes for layer in layers_of(found.values[node.name])]
    flat = [np.unique(layer.numpy()) for layer in layers]
    return np.concatenate([np.zeros(0, dtype=np.int64), *flat])


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


def is_of_numbers(
    labels: Labels,
    signature: tuple[tuple[int, int], ...],
    makers: Set[int],
    module: CapturedModule,
) -> bool:
    """Whether weights only read this width, and a buffer gives it: coordinates, or integers."""
    owners = [attribute(module, labels.axes[index].owner) for index, _ in signature]
    tensors = [tensor for tensor in owners if isinstance(tensor, torch.Tensor)]
    if not any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors):
        return True
    pairs = zip(signature, owners, strict=True)
    if any(index in makers and not _is_row_of_numbers(owner) for (index, _), owner in pairs):
        return False
    weights = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
    return 0 < len(weights) < len(tensors) and all(weight.dim() > 1 for weight in weights)


def _is_row_of_numbers(owner: object) -> bool:
    """Whether it is a buffer of one dim, those of size 1 (1, 160) not counted."""
    if not isinstance(owner, torch.Tensor) or isinstance(owner, nn.Parameter):
        return False
    return sum(size > 1 for size in owner.shape) == 1
