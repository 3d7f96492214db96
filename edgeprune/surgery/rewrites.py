"""Sizes and positions that are written into operators which move or make values."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.node import Argument

from edgeprune.graph.rules.movement import padded_positions
from edgeprune.surgery.operation import Operation
from edgeprune.surgery.rewriting import integer, integers, rewrite

aten = torch.ops.aten


@rewrite(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.broadcast_to.default,
)
def sizes_second(op: Operation, node: fx.Node) -> None:
    """view(x, [2, 12, 64]) with 6 of 12 heads kept -> view(x, [2, 6, 64])."""
    node.update_arg(1, op.sizes(node, node.args[1]))


@rewrite(aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format)
def sizes_first(op: Operation, node: fx.Node) -> None:
    """zeros([2, 8]) -> zeros([2, 5])."""
    node.update_arg(0, op.sizes(node, node.args[0]))


@rewrite(
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
)
def sizes_like(op: Operation, node: fx.Node) -> None:
    """new_zeros(x, [2, 8]) -> new_zeros(x, [2, 5])."""
    node.update_arg(1, op.sizes(node, node.args[1]))


@rewrite(aten.unflatten.int)
def unflatten(op: Operation, node: fx.Node) -> None:
    """unflatten(x, -1, [3, 768]) -> unflatten(x, -1, [3, 384])."""
    source = op.before(node.args[0])
    dim = integer(node.args[1]) % len(source.shape)
    written = list(node.args[2])  # type: ignore[arg-type]
    node.update_arg(2, op.sizes(node, written, first=dim))


@rewrite(
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.tensor_split.indices,
    aten.tensor_split.sections,
)
def split(op: Operation, node: fx.Node) -> None:
    """chunk(x, 2, 1) with unequal survivors -> split_with_sizes(x, [3, 5], 1)."""
    source = op.before(node.args[0])
    written = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    dim = integer(written) % len(source.shape)
    if dim not in op.survivors.along(source):
        # The batch may be split: its parts must not be written as numbers.
        return
    parts = op.members_after(node)
    node.target = aten.split_with_sizes.default
    node.args = (node.args[0], [shape[dim] for shape in parts], dim)
    node.kwargs = {}


@rewrite(aten.select.int)
def select(op: Operation, node: fx.Node) -> None:
    """select(x, 1, 5) where position 5 became position 3 -> select(x, 1, 3)."""
    source = op.before(node.args[0])
    dim = integer(node.args[1]) % len(source.shape)
    kept = op.survivors.along(source).get(dim)
    if kept is not None:
        wanted = integer(node.args[2]) % source.shape[dim]
        node.update_arg(2, int(torch.searchsorted(kept, wanted)))


@rewrite(aten.slice.Tensor, aten.narrow.default)
def cut(op: Operation, node: fx.Node) -> None:
    """x[:, 4:8] where 2 of the first four and 3 of the next stay -> x[:, 2:5].

    What takes the whole of an axis takes it in any size: samples may be merged with it.
    """
    source = op.before(node.args[0])
    dim = integer(node.args[1] if len(node.args) > 1 else 0) % len(source.shape)
    if dim not in op.survivors.along(source):
        return
    if op.before(node).shape[dim] == source.shape[dim]:
        node.target = aten.alias.default
        node.args, node.kwargs = (node.args[0],), {}
        return
    positions = op.sources(node, dim)
    # A slice may be empty: the heads behind the last one, of which a model has none.
    start = int(positions[0]) if len(positions) else 0
    if torch.equal(positions, torch.arange(start, start + len(positions))):
        node.target = aten.slice.Tensor
        node.args = (node.args[0], dim, start, start + len(positions))
        node.kwargs = {}
    else:
        op.gather(node, dim, positions)


@rewrite(aten.channel_shuffle.default, aten.index_select.default)
def regather(op: Operation, node: fx.Node) -> None:
    """channel_shuffle(x, 2) of 8, 5 kept -> index_select with where each kept one came from."""
    dim = 1 if node.target is aten.channel_shuffle.default else integer(node.args[1])
    dim %= len(op.before(node).shape)
    if dim in _changed(op, node):
        op.gather(node, dim, op.sources(node, dim))


@rewrite(aten.index.Tensor)
def index(op: Operation, node: fx.Node) -> None:
    """x[:, perm] of 8 positions, 5 kept -> index_select with where each kept one came from."""
    indices: list[object] = list(node.args[1])  # type: ignore[arg-type]
    dims = [dim for dim, value in enumerate(indices) if value is not None]
    if len(dims) == 1 and dims[0] in _changed(op, node):
        op.gather(node, dims[0], op.sources(node, dims[0]))


@rewrite(aten.roll.default)
def roll(op: Operation, node: fx.Node) -> None:
    """roll(x, [2, 1], [1, 3]) where dim 1 lost positions -> roll(index_select(x, 1), [1], [3]).

    The kept positions come rolled out of index_select; along the other dims the op goes on.
    """
    ndim = len(op.before(node).shape)
    shifts, dims = integers(node.args[1]), integers(node.args[2])
    pairs = [(shift, dim % ndim) for shift, dim in zip(shifts, dims, strict=True)]
    changed = _changed(op, node)
    rest = [(shift, dim) for shift, dim in pairs if dim not in changed]
    # Asked of the op as it was: before any edit. A full turn of 8 is none of the 5 that are left.
    sources = {
        dim: op.sources(node, dim)
        for dim in sorted({dim for _, dim in pairs} & changed)
        if not op.is_identity(node, dim)
    }
    if rest:
        node.args = (node.args[0], [shift for shift, _ in rest], [dim for _, dim in rest])
    elif sources:
        op.gather(node, *sources.popitem())
    else:
        node.target, node.args = aten.alias.default, (node.args[0],)
    for dim, positions in sources.items():
        op.gather_before(node, dim, positions)


@rewrite(aten.constant_pad_nd.default, aten.pad.default)
def pad(op: Operation, node: fx.Node) -> None:
    """pad(x, (-1, 2)) of 8 positions, 0 and 3 gone -> pad(index_select(x), (0, 2)).

    Adding positions is right for any width; what cuts or repeats positions is done by number.
    """
    source = op.before(node.args[0])
    widths = list(node.args[1])  # type: ignore[arg-type]
    mode = str(node.args[2]) if len(node.args) > 2 and isinstance(node.args[2], str) else "constant"
    for dim, kept in op.survivors.along(source).items():
        place = 2 * (len(source.shape) - 1 - dim)
        if place >= len(widths):
            continue
        before, after = integer(widths[place]), integer(widths[place + 1])
        if mode == "constant" and before >= 0 and after >= 0:
            continue
        origin = padded_positions(source.shape[dim], before, after, mode)
        wanted = origin[torch.isin(origin, kept)]
        op.gather_before(node, dim, torch.searchsorted(kept, wanted))
        added = mode == "constant"
        widths[place : place + 2] = [max(before, 0), max(after, 0)] if added else [0, 0]
    node.update_arg(1, widths)


@rewrite(aten.repeat.default)
def repeat(op: Operation, node: fx.Node) -> None:
    """repeat(x, [1, 8]) of (2, 1) with 5 of 8 kept -> repeat(x, [1, 5]); copies stay whole."""
    shape, source = op.shape_after(node), op.before(node.args[0])
    repeats: list[Argument] = list(node.args[1])  # type: ignore[arg-type]
    missing = len(repeats) - len(source.shape)
    for dim in _changed_in(op, node):
        if dim < missing or source.shape[dim - missing] == 1:
            repeats[dim] = shape[dim]
    node.update_arg(1, repeats)


@rewrite(aten.repeat_interleave.self_int)
def repeat_interleave(op: Operation, node: fx.Node) -> None:
    """repeat_interleave(x, 2, 1, output_size=16) with 5 of 8 kept -> output_size=10.

    Of a single position, the number of copies is what shrinks.
    """
    dim = node.args[2] if len(node.args) > 2 else None
    copied = isinstance(dim, int) and isinstance(node.args[1], int)
    if copied and op.before(node.args[0]).shape[integer(dim)] == 1:
        node.update_arg(1, op.shape_after(node)[integer(dim)])
    if isinstance(node.kwargs.get("output_size"), int):
        node.update_kwarg("output_size", op.shape_after(node)[integer(dim or 0)])


@rewrite(aten.unfold.default)
def windows(op: Operation, node: fx.Node) -> None:
    """unfold(x, 1, 4, 4) of 8 positions, half of each window kept -> unfold(x, 1, 2, 2)."""
    source = op.before(node.args[0])
    dim = integer(node.args[1]) % len(source.shape)
    if dim in op.survivors.along(source):
        size = op.shape_after(node)[-1]
        node.args = (node.args[0], dim, size, size)


@rewrite(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(op: Operation, node: fx.Node) -> None:
    """squeeze(x) of (2, 8, 1, 1) with one channel kept -> squeeze(x, [2, 3]): dim 1 stays."""
    source = op.before(node.args[0])
    asked = range(len(source.shape)) if len(node.args) < 2 else integers(node.args[1])
    dims = {dim % len(source.shape) for dim in asked}
    risky = [dim for dim in dims if dim in op.survivors.along(source)]
    if risky:
        node.target = aten.squeeze.dims
        node.args = (node.args[0], sorted(dim for dim in dims if source.shape[dim] == 1))


def _changed(op: Operation, node: fx.Node) -> set[int]:
    """Dims of an op that keeps them in place, along which its input or its result lost some."""
    source, result = op.before(node.args[0]), op.before(node)
    return set(op.survivors.along(source)) | set(op.survivors.along(result))


def _changed_in(op: Operation, node: fx.Node) -> set[int]:
    """Dims of the result that lost some."""
    return set(op.survivors.along(op.before(node)))
