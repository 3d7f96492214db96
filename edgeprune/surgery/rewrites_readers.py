"""Sizes, counts and scales that are written into norms, convolutions, means and attention."""

from __future__ import annotations

import math

import torch
from torch import fx
from torch.fx.node import Argument

from edgeprune.errors import InternalError
from edgeprune.graph.operators import CONVOLUTIONS, TRANSPOSED
from edgeprune.graph.rules.reduction import dims_of, values_read
from edgeprune.surgery.operation import Operation
from edgeprune.surgery.rewriting import integer, rewrite

aten = torch.ops.aten


@rewrite(aten.layer_norm.default)
def layer_norm(op: Operation, node: fx.Node) -> None:
    """layer_norm(x, [768]) -> layer_norm(x, [384])."""
    shape = op.shape_after(node)
    count = len(list(node.args[1]))  # type: ignore[arg-type]
    node.update_arg(1, list(shape[len(shape) - count :]))


@rewrite(aten.rms_norm.default)
def rms_norm(op: Operation, node: fx.Node) -> None:
    """rms_norm(x, [8], w, eps), 4 kept -> rms_norm(x, [4], w, eps * 2) * sqrt(2).

    Exact: sum / 8 + eps = (sum / 4 + eps * 8 / 4) * 4 / 8, and the root of 8 / 4 goes outside.
    """
    shape, source = op.shape_after(node), op.before(node.args[0])
    first = len(shape) - len(list(node.args[1]))  # type: ignore[arg-type]
    more = math.prod(source.shape[first:]) / math.prod(shape[first:])
    node.update_arg(1, list(shape[first:]))
    if more != 1.0:
        node.update_arg(3, float(node.args[3]) * more)  # type: ignore[arg-type]
        op.scale(node, math.sqrt(more))


@rewrite(aten.group_norm.default)
def group_norm(op: Operation, node: fx.Node) -> None:
    """group_norm(x, 8) with half of the groups kept -> group_norm(x, 4); one group stays one."""
    if node.args[1] != 1:
        node.update_arg(1, _share(op, node, integer(node.args[1]), channel=1))


@rewrite(*CONVOLUTIONS, *TRANSPOSED)
def groups(op: Operation, node: fx.Node) -> None:
    """conv2d(..., groups=8) with 6 of 8 channels kept -> groups=6; groups=1 stays.

    The number of groups is the width over what one group has of it, dim 1 of the weight: with
    8 of 16 channels left, 1 of 2 in each group, there are 8 groups as before.
    """
    if len(node.args) > 6 and node.args[6] != 1:
        weight = op.survivors.shape(op.before(node.args[1]))
        divided = op.shape_after(node) if node.target in TRANSPOSED else _shape(op, node.args[0])
        node.update_arg(6, _counted(op, node, node.args[6], divided[1 - len(weight)], weight[1]))


@rewrite(aten.mean.dim, aten.mean.default)
def mean(op: Operation, node: fx.Node) -> None:
    """mean over 8 channels, 5 kept -> mean * 5 / 8: the sum of the kept over the dense count."""
    source = op.before(node.args[0])
    dims = list(node.args[1]) if len(node.args) > 1 and node.args[1] else range(len(source.shape))  # type: ignore[arg-type]
    kept = op.survivors.along(source)
    factor = 1.0
    for dim in (int(d) % len(source.shape) for d in dims):
        if dim in kept:
            factor *= len(kept[dim]) / source.shape[dim]
    if factor != 1.0:
        op.scale(node, factor)


@rewrite(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default)
def extreme(op: Operation, node: fx.Node) -> None:
    """amax over 8 channels, 5 kept -> clamp_min(amax, 0): a removed one is heard as 0."""
    source = op.before(node.args[0])
    dims = dims_of(node.args[1] if len(node.args) > 1 else None, len(source.shape))  # type: ignore[arg-type]
    if set(dims) & set(op.survivors.along(source)):
        largest = node.target in (aten.amax.default, aten.max.default)
        op.limit(node, aten.clamp_min.default if largest else aten.clamp_max.default)


@rewrite(aten.max.dim, aten.min.dim)
def extreme_of_pair(op: Operation, node: fx.Node) -> None:
    """max(x, 1)[0] over 8 channels, 5 kept -> clamp_min(max(x, 1)[0], 0): as `extreme`."""
    source, values = op.before(node.args[0]), values_read(node)
    dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
    dims = dims_of(integer(dim), len(source.shape))
    if values is not None and set(dims) & set(op.survivors.along(source)):
        largest = node.target is aten.max.dim
        op.limit(values, aten.clamp_min.default if largest else aten.clamp_max.default)


@rewrite(aten.scaled_dot_product_attention.default)
def attention(op: Operation, node: fx.Node) -> None:
    """A narrower head dim keeps the dense scale, written out."""
    query = op.before(node.args[0])
    if len(query.shape) - 1 in op.survivors.along(query) and node.kwargs.get("scale") is None:
        node.update_kwarg("scale", float(query.shape[-1]) ** -0.5)


def _share(op: Operation, node: fx.Node, written: Argument, channel: int) -> Argument:
    """The number of groups that stays: 8 groups of 16 channels, 6 channels kept -> 3."""
    source = op.before(node.args[0])
    count = op.dense_number(written) if isinstance(written, fx.Node) else integer(written)
    a_group = source.shape[channel] // count
    return _counted(op, node, written, op.survivors.shape(source)[channel], a_group)


def _counted(
    op: Operation, node: fx.Node, written: Argument, channels: int, a_group: int
) -> Argument:
    """`written` groups as `channels` of `a_group` each have them."""
    kept, rest = divmod(channels, a_group)
    if rest:
        raise InternalError(
            f"surgery at {node.name}: expected whole groups of {a_group}, got {channels} channels.",
            where=node.name,
        )
    if isinstance(written, fx.Node):
        return written if op.number(written) == kept else op.scaled(node, written, kept)
    return kept


def _shape(op: Operation, argument: Argument) -> tuple[int, ...]:
    """Shape of an operand after surgery."""
    return op.survivors.shape(op.before(argument))
