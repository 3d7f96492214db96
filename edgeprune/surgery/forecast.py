"""Forecast: what a plan would leave of a model's cost, without carrying it out."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.labels import Value
from edgeprune.graph.module import attribute
from edgeprune.graph.observe import Fact, TensorFact
from edgeprune.planning.cost import Cost, macs
from edgeprune.planning.plan import Plan
from edgeprune.surgery.survivors import Survivors, survivors


def forecast(analysis: Analysis, plan: Plan) -> Cost:
    """Parameters and MACs of `shrink(analysis, plan)`, from the labels that survive.

    The same figures as `cost` of the shrunk model, captured again, at the price of a table look-up
    a value: a search over budgets asks for many of them.
    Raises `PlanError` when the plan does not fit the analysis.
    """
    left = survivors(analysis, plan)
    values = analysis.walk.values
    facts: dict[str, Fact] = {
        name: _after(left, values.get(name), fact) for name, fact in analysis.captured.facts.items()
    }
    return Cost(params=_parameters(analysis, left), macs=macs(analysis.captured, facts))


def _after(left: Survivors, value: object, fact: Fact) -> Fact:
    if isinstance(fact, TensorFact) and isinstance(value, Value):
        return replace(fact, shape=left.shape(value))
    return fact


def _parameters(analysis: Analysis, left: Survivors) -> int:
    """Numbers in all parameters after surgery; a tied one counts once, one unread in full."""
    module = analysis.captured.module
    sizes = {id(parameter): parameter.numel() for parameter in module.parameters()}
    for node in module.graph.nodes:
        value = analysis.walk.values.get(node.name)
        if node.op == "get_attr" and isinstance(value, Value):
            tensor = attribute(module, str(node.target))
            if isinstance(tensor, nn.Parameter):
                sizes[id(tensor)] = math.prod(left.shape(value))
    return sum(sizes.values())
