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
    projection are one unit, and the mask's head 1 if the mask has heads.
    """
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        for operand in (query, key, value):
            t.pin(operand, "grouped-query attention inside one operator")
        return Value((*query.shape[:-1], value.shape[-1]))
    lead = _LEADING[: len(query.shape) - 2]
    scores = contract(t, query, key, Equation(lead + "lx", lead + "sx", lead + "ls"), 0)
    if mask is not None:
        scores = t.meet(scores, mask)
    for layer in scores.layers:
        t.tie(layer, (layer.dim() - 1,), "softmax over keys")
    return contract(t, value, scores, Equation(lead + "sy", lead + "ls", lead + "ly"), 2)
