"""Regions of a graph that torch.export wraps: their operators, put where the region stood.

`with torch.autocast(..., enabled=False)` and `with torch.enable_grad()` become one call of a
subgraph. In a model that runs in one precision and without gradients neither changes a number.
"""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import fx

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.module import attribute
from edgeprune.graph.provenance import source_line

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GRADIENT = torch.ops.higher_order.wrap_with_set_grad_enabled

# Where the subgraph stands among the arguments; what it is called with follows.
_BODY: dict[object, int] = {_AUTOCAST: 4, _GRADIENT: 1}
_AUTOCAST_ENABLED = 2


def inline_regions(module: fx.GraphModule) -> None:
    """Replace every such region by its operators (in place), regions in regions too.

    Raises ModelNotSupported for a region that really computes in another precision.
    """
    while True:
        region = next((node for node in module.graph.nodes if node.target in _BODY), None)
        if region is None:
            break
        _inline(module, region)


def _inline(module: fx.GraphModule, region: fx.Node) -> None:
    position = _BODY[region.target]
    body = cast(fx.Node, region.args[position])
    inner = cast(fx.GraphModule, attribute(module, str(body.target)))
    if region.target is _AUTOCAST and region.args[_AUTOCAST_ENABLED]:
        first = next(node for node in inner.graph.nodes if node.op == "call_function")
        where = source_line(first) or region.name
        raise ModelNotSupported(
            f"capture at {where}: expected one precision, got a region of autocast to "
            f"{region.args[1]}. Leave torch.autocast out of forward().",
            where=where,
        )
    placeholders = [node for node in inner.graph.nodes if node.op == "placeholder"]
    operands = region.args[position + 1 :]
    values: dict[fx.Node, fx.Node] = {}
    for placeholder, operand in zip(placeholders, operands, strict=True):
        values[placeholder] = cast(fx.Node, operand)
    with module.graph.inserting_before(region):
        result = module.graph.graph_copy(inner.graph, values)
    if isinstance(result, tuple | list):
        for user in list(region.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(cast(fx.Node, result[cast(int, user.args[1])]))
                module.graph.erase_node(user)
    else:
        region.replace_all_uses_with(cast(fx.Node, result))
    module.graph.erase_node(region)
    if not body.users:
        module.graph.erase_node(body)
        delattr(module, str(body.target))
