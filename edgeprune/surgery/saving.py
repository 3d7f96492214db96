"""What each group would save, alone: parameters and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.labels import Value
from edgeprune.graph.module import attribute
from edgeprune.graph.observe import Fact, TensorFact
from edgeprune.graph.propagate import layers_of
from edgeprune.planning.cost import Cost, macs_of
from edgeprune.surgery.survivors import Survivors


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What goes with the first unit of a group, and with all of them but one."""

    unit: Cost
    most: Cost


def savings(analysis: Analysis) -> dict[str, Saving]:
    """The saving of every group, by its name, while all other groups stay whole.

    The difference of `cost` before and after such a removal, counted at the nodes that it touches
    only: a large model has hundreds of groups.
    """
    touched = _touched(analysis)
    return {
        group.name: Saving(
            unit=_saved(analysis, touched[index], group.name, np.arange(group.width) == 0),
            most=_saved(analysis, touched[index], group.name, np.arange(group.width) > 0),
        )
        for index, group in enumerate(analysis.groups)
    }


def _touched(analysis: Analysis) -> list[list[str]]:
    """For every group, the nodes whose values carry its units."""
    found: list[list[str]] = [[] for _ in analysis.groups]
    known: dict[tuple[int, ...], list[int]] = {}
    for name, value in analysis.walk.values.items():
        mine: set[int] = set()
        for layer in layers_of(value):
            key = (layer.data_ptr(), *layer.shape, *layer.stride())
            if key not in known:
                groups = np.unique(analysis.partition.group_of_label[layer.numpy()])
                known[key] = groups[groups >= 0].tolist()
            mine.update(known[key])
        for index in mine:
            found[index].append(name)
    return found


def _saved(analysis: Analysis, names: list[str], group: str, goes: NDArray[np.bool_]) -> Cost:
    left = Survivors(analysis, analysis.kept_labels({group: goes}))
    facts = analysis.captured.facts
    after: dict[str, Fact] = dict(facts)
    for name in names:
        value, fact = analysis.walk.values[name], facts.get(name)
        if isinstance(value, Value) and isinstance(fact, TensorFact):
            after[name] = replace(fact, shape=left.shape(value))
    nodes = _nodes_at(analysis, names)
    macs = sum(macs_of(node, facts) - macs_of(node, after) for node in nodes)
    params = {
        id(tensor): tensor.numel() - math.prod(_shape(after, node.name))
        for node in nodes
        for tensor in [_parameter(analysis, node)]
        if tensor is not None
    }
    batch = analysis.captured.inputs.batch_size or 1
    return Cost(params=sum(params.values()), macs=round(macs / batch))


def _nodes_at(analysis: Analysis, names: list[str]) -> list[fx.Node]:
    """The nodes that make these values or read them."""
    mine = set(names)
    return [
        node
        for node in analysis.captured.module.graph.nodes
        if node.name in mine or any(source.name in mine for source in node.all_input_nodes)
    ]


def _parameter(analysis: Analysis, node: fx.Node) -> nn.Parameter | None:
    if node.op != "get_attr":
        return None
    tensor = attribute(analysis.captured.module, str(node.target))
    return tensor if isinstance(tensor, nn.Parameter) else None


def _shape(facts: Mapping[str, Fact], name: str) -> tuple[int, ...]:
    fact = facts[name]
    return fact.shape if isinstance(fact, TensorFact) else ()
