"""Prune and return to the user's class, with the outputs compared."""

from __future__ import annotations

import copy

import torch
from small_nets import noise, require_equal
from torch import nn

import edgeprune
from edgeprune.surgery.user_class import Returned


def returned(model: nn.Module, *args: torch.Tensor, **options: object) -> Returned:
    """Prune at random, return to the class; the outputs must be those of the shrunk graph.

    On other inputs than `to_module` compares with; the class, the user's model and the graph's
    tensors are what they must be.
    """
    before = copy.deepcopy(model.state_dict())
    pruned = edgeprune.prune(model, args, **{"criterion": "random", **options})
    result = edgeprune.to_module(pruned, model)
    fresh = tuple(a if not a.is_floating_point() else noise(*a.shape, seed=77) for a in args)
    with torch.no_grad():
        require_equal(
            tuple(torch.utils._pytree.tree_leaves(copy.deepcopy(result.module).eval()(*fresh))),
            tuple(torch.utils._pytree.tree_leaves(pruned.model.eval()(*fresh))),
        )
    assert type(result.module) is type(model)
    assert sizes(result.module) < sizes(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    return result


def sizes(model: nn.Module) -> int:
    """Numbers in all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def changed(result: Returned) -> dict[str, tuple[object, object]]:
    """`layer.attribute`: (before, after)."""
    return {f"{c.module}.{c.attribute}".strip("."): (c.before, c.after) for c in result.changes}
