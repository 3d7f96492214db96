"""Scaled dot-product attention: two contractions and a softmax."""

from __future__ import annotations

import torch

from edgeprune.graph.contraction import Equation, contract
from edgeprune.graph.labels import Value
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

_LEADING = "abcdefgh"


@rule(aten.scaled_dot_product_attention.default)
def attention(
    t: Trace,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Queries and keys are contracted within each head, so whole heads are the units.

    query, key, value (2, 4, 5, 8) with labels along (head, 8): head 1's eight rows of each
    projection are one unit, and the mask's head 1 if the mask has heads. Grouped: 2 key heads
    for 4 query heads, head 0 of the keys with heads 0 and 1 of the queries.
    """
    if enable_gqa:
        key, value = (_repeated(operand, query.shape[-3]) for operand in (key, value))
    lead = _LEADING[: len(query.shape) - 2]
    scores = contract(t, query, key, Equation(lead + "lx", lead + "sx", lead + "ls"), 0)
    if mask is not None:
        scores = t.meet(scores, mask)
    for layer in scores.layers:
        t.tie(layer, (layer.dim() - 1,), "softmax over keys")
    return contract(t, value, scores, Equation(lead + "sy", lead + "ls", lead + "ly"), 2)


def _repeated(value: Value, heads: int) -> Value:
    """Keys as grouped queries hear them: each head as many times as it has queries."""
    count = value.shape[-3]
    if count in (1, heads):
        # One for all: it is broadcast, and any number of queries fits.
        return value
    shape = (*value.shape[:-3], heads, *value.shape[-2:])
    layers = tuple(
        layer.repeat_interleave(heads // count, -3) if layer.shape[-3] > 1 else layer
        for layer in value.layers
    )
    return Value(shape, layers)
