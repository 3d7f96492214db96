"""Variance and standard deviation over an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch._ops import OpOverload

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.registry import rule
from edgeprune.graph.rules.reduction import dims_of, reduced
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

VARIANCES = (aten.var.default, aten.var.dim, aten.var.correction)
DEVIATIONS = (aten.std.default, aten.std.dim, aten.std.correction)
VARIANCES_AND_MEANS = (aten.var_mean.default, aten.var_mean.dim, aten.var_mean.correction)
DEVIATIONS_AND_MEANS = (aten.std_mean.default, aten.std_mean.dim, aten.std_mean.correction)


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance over `dims` of a tensor: squares / (`count` - `correction`), `count` elements."""

    dims: tuple[int, ...]
    correction: float
    keepdim: bool
    count: int


def spread_of(
    target: OpOverload,
    shape: tuple[int, ...],
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> Spread:
    """What one of the twelve overloads asks of a tensor of `shape`; `args` without the tensor.

    var.dim([1], False) of (2, 8) -> dims (1,), correction 0, count 8.
    """
    names = [argument.name for argument in target._schema.arguments[1:]]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    dim, correction = given.get("dim"), given.get("correction")
    if correction is None:
        correction = 1 if given.get("unbiased", True) else 0
    if not isinstance(correction, int | float):
        raise TypeError(f"{target} with a correction of {correction!r}")
    chosen = dim if isinstance(dim, int | list | tuple) else None
    dims = dims_of(chosen, len(shape))
    count = math.prod(shape[d] for d in dims)
    return Spread(dims, correction, bool(given.get("keepdim", False)), count)


@rule(*VARIANCES, *DEVIATIONS, *VARIANCES_AND_MEANS, *DEVIATIONS_AND_MEANS)
def spread(
    t: Trace, x: Value, *args: object, **kwargs: object
) -> Value | tuple[Value | None, ...] | None:
    """As one operator it pins the axis; written as means of squares it is exact.

    x (2, 8), var over dim 1: (mean (x - mean x)^2) * 8 / 7, whose means are sums over what is
    kept by the dense count. Labels that also vary elsewhere (heads x head dim) are tied.
    """
    asked = spread_of(t.target, x.shape, args, kwargs)
    why = "a statistic is taken over this axis"
    passing = []
    for layer in x.layers:
        inside = tuple(dim for dim in varying(layer) if dim in asked.dims)
        if not inside or len(inside) < len(varying(layer)):
            t.tie(layer, inside, why)
            passing.append(layer)
        elif asked.count > asked.correction:
            t.in_steps(layer, why)
        else:
            t.labels.pin(layer, t.cause(why))
    result = t.settle(reduced(x, passing, asked.dims, asked.keepdim))
    return (result, result) if isinstance(t.facts[t.node.name], tuple) else result
