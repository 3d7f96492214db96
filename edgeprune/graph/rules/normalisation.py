"""Normalisation layers: where the statistic is taken decides what can go."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

# Formulas of redefined statistics: mean and variance over the kept positions.
LAYER_NORM = "layer_norm"
GROUP_NORM = "group_norm"


def _per_channel(value: Value | None, ndim: int) -> list[Value]:
    """A vector over channels as a value that broadcasts against (N, C, ...)."""
    if value is None:
        return []
    tail = (1,) * (ndim - 2)
    layers = tuple(layer.reshape(-1, *tail) for layer in value.layers)
    return [Value((value.shape[0], *tail), layers)]


@rule(aten.batch_norm.default)
def batch_norm(
    t: Trace,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    *args: object,
) -> Value:
    """Each channel by itself: x's channel 3 joins position 3 of weight, bias, mean, variance.

    x (2, 8, 5, 5), weight (8,), ...: eight units with four vectors each.
    """
    ndim = len(x.shape)
    vectors = [v for p in (weight, bias, mean, variance) for v in _per_channel(p, ndim)]
    return t.meet(x, *vectors)


@rule(aten.layer_norm.default)
def layer_norm(
    t: Trace,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    *args: object,
) -> Value:
    """Normalise the last dims: position 7 of x, weight[7] and bias[7] become one unit.

    x (2, 5, 24), normalized_shape (24,): removing a position changes mean and variance, so the
    unit redefines this node (statistics over the kept positions) unless `exact_only` forbids it.
    The same for x (2, 8, 5, 5) normalised over (8, 5, 5): channels may go.
    Labels that also vary elsewhere (heads x head dim, normalised over head dim) are tied: whole
    heads go, and no statistic changes.
    """
    ndim = len(x.shape)
    inside = tuple(range(ndim - len(normalized_shape), ndim))
    for layer in x.layers:
        dims = varying(layer)
        summed = tuple(dim for dim in dims if dim in inside)
        if not summed:
            continue
        if len(summed) == len(dims) == 1 and not t.exact_only:
            t.redefine(layer, LAYER_NORM)
        else:
            t.tie(layer, summed, "layer_norm takes its statistics over this axis")
    parameters = [p for p in (weight, bias) if p is not None]
    return t.meet(x, *parameters)


@rule(aten.rms_norm.default)
def rms_norm(
    t: Trace,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    """A mean of squares is a sum over what is kept by the dense count: exact, no redefinition.

    x (2, 5, 24), normalized_shape (24,), weight (24,): position 7 of x and weight[7] are one
    unit. A removed position adds nothing to the sum (surgery writes the 24 out). Labels that also
    vary elsewhere (heads x head dim) are tied: whole heads go.
    """
    inside = tuple(range(len(x.shape) - len(normalized_shape), len(x.shape)))
    for layer in x.layers:
        summed = tuple(dim for dim in varying(layer) if dim in inside)
        if summed and len(summed) < len(varying(layer)):
            t.tie(layer, summed, "rms_norm takes its statistic over this axis")
        elif summed and eps is None:
            t.in_steps(layer, "rms_norm has no number for eps")
        elif summed:
            t.read(0, layer)
    return t.meet(x) if weight is None else t.meet(x, weight)


@rule(aten.group_norm.default)
def group_norm(
    t: Trace,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    *args: object,
) -> Value:
    """Whole groups are the units: the statistic is taken within one.

    x (2, 8, 5, 5), groups = 4: channels 0-1 with weight[0:2], bias[0:2] are one unit. One group is
    a layer norm over channels and space: channels may go and redefine it (statistics over the
    kept channels) unless `exact_only` forbids it.
    """
    alone = groups == 1 and not t.exact_only
    for layer in x.layers:
        t.tie(layer, tuple(range(2, len(x.shape))), "group_norm sums over this axis")
        if layer.shape[1] > 1:
            if alone:
                t.redefine(layer, GROUP_NORM)
            else:
                sample = layer.select(0, 0).reshape(layer.shape[1], -1)[:, 0]
                t.tie(sample.reshape(groups, -1), (1,), "group_norm sums within a group")
            if layer.shape[0] > 1:
                t.tie(layer, (0,), "group_norm sums within a group")
    ndim = len(x.shape)
    vectors = [v for p in (weight, bias) for v in _per_channel(p, ndim)]
    return t.meet(x, *vectors)


@rule(aten.instance_norm.default)
def instance_norm(
    t: Trace,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    *args: object,
) -> Value:
    """Statistics over space only: channels go one by one.

    x (2, 8, 5, 5), weight (8,): eight units.
    """
    for layer in x.layers:
        t.tie(layer, tuple(range(2, len(x.shape))), "instance_norm sums over this axis")
    ndim = len(x.shape)
    vectors = [v for p in (weight, bias, mean, variance) for v in _per_channel(p, ndim)]
    return t.meet(x, *vectors)
