"""ONNX operators that move values: reshape, transpose, slice, gather, pad."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from edgeprune.recipe.onnx_call import Call, Numbers, Result, onnx_op
from edgeprune.recipe.onnx_numbers import slices


@onnx_op("Reshape")
def reshape(call: Call) -> Result:
    """The same elements in another shape: 0 copies a size (not with allowzero), -1 is what is left.

    While another batch than the file's is tried, the file's own as first size means the batch.
    """
    x, sizes = call.tensor(0), call.sizes(1)
    if not call.integer("allowzero", 0):
        sizes = [x.shape[dim] if _is(size, 0) else size for dim, size in enumerate(sizes)]
    if sizes and call.fixed_batch is not None and _is(sizes[0], call.fixed_batch):
        sizes[0] = x.shape[0]
    return x.reshape(sizes)


def _is(size: object, value: int) -> bool:
    """Whether a size is that number; a symbolic one is not, and must not be guarded on."""
    return isinstance(size, int) and size == value


@onnx_op("Flatten")
def flatten(call: Call) -> Result:
    """Two axes: those before `axis`, those from it on."""
    x = call.tensor(0)
    axis = call.integer("axis", 1)
    axis += x.dim() if axis < 0 else 0
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x.reshape(x.shape[0], 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@onnx_op("Transpose")
def transpose(call: Call) -> Result:
    """Axes in another order; reversed where none is given."""
    x = call.tensor(0)
    return x.permute(call.integers("perm", range(x.dim())[::-1]))


@onnx_op("Squeeze")
def squeeze(call: Call) -> Result:
    """Axes of size 1 dropped."""
    x, axes = call.tensor(0), call.axes()
    if axes is None:
        axes = [dim for dim, size in enumerate(x.shape) if _is(size, 1)]
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x


@onnx_op("Unsqueeze")
def unsqueeze(call: Call) -> Result:
    """New axes of size 1, at places in the result."""
    x, axes = call.tensor(0), call.axes() or []
    dims = x.dim() + len(axes)
    for axis in sorted(axis % dims for axis in axes):
        x = x.unsqueeze(axis)
    return x


@onnx_op("Concat")
def concat(call: Call) -> Result:
    """One after another along an axis.

    While another batch than the file's is tried, what has the file's own (a class token) repeats.
    """
    tensors = [call.tensor(index) for index in range(len(call.values))]
    axis = call.integer("axis", 0) % tensors[0].dim()
    if call.fixed_batch == 1 and axis:
        batches = [x.shape[0] for x in tensors if not _is(x.shape[0], 1)]
        if batches:
            tensors = [
                x.expand(batches[0], *x.shape[1:]) if _is(x.shape[0], 1) else x for x in tensors
            ]
    return torch.cat(tensors, axis)


@onnx_op("Split")
def split(call: Call) -> Result:
    """Parts along an axis: as sizes, or as many as there are outputs, the last one smaller."""
    x = call.tensor(0)
    axis = call.integer("axis", 0) % x.dim()
    count = len(call.step.outputs)
    if call.has(1):
        sizes = call.sizes(1)
    elif "split" in call.step.attributes:
        sizes = call.integers("split")
    else:
        each = -(-x.shape[axis] // count)
        sizes = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    return tuple(torch.split(x, sizes, axis))


@onnx_op("Slice")
def slice_tensor(call: Call) -> Result:
    """Starts, ends and steps of axes; a negative step walks backwards."""
    x = call.tensor(0)
    for start, end, axis, step in zip(*slices(call, x.dim()), strict=True):
        size = x.shape[axis]
        if step > 0:
            x = _forwards(x, axis, start, end, step)
            continue
        if not isinstance(size, int):
            raise call.step.refused("a fixed size of an axis that is reversed", "the batch")
        first = min(start + size if start < 0 else start, size - 1)
        last = max(end + size if -size <= end < 0 else end, -1)
        places = list(range(first, last, step))
        if places == list(range(size))[::-1]:
            x = x.flip(axis)
        else:
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return x


def _forwards(x: torch.Tensor, axis: int, start: int, end: int, step: int) -> torch.Tensor:
    index = [slice(None)] * x.dim()
    # The whole of an axis stays unwritten, so that nothing depends on its size.
    whole_start = None if _is(start, 0) else start
    whole_end = None if _is_end(end) else end
    index[axis] = slice(whole_start, whole_end, step)
    return x[tuple(index)]


def _is_end(end: object) -> bool:
    """Whether an end is ONNX's way to say: all that is left."""
    return isinstance(end, int) and end >= 2**31 - 1


@onnx_op("Gather")
def gather(call: Call) -> Result:
    """Places along an axis, which the indices' own axes replace."""
    x, index = call.tensor(0), call.value(1)
    axis = call.integer("axis", 0) % x.dim()
    if isinstance(index, Numbers) and index.array.ndim == 0:
        return x.select(axis, int(call.number(1, 0)))
    places = call.tensor(1).to(torch.int64)
    if not isinstance(index, Numbers) and axis == 0 and x.dim() == 2:
        return F.embedding(places, x)
    if isinstance(index, Numbers):
        size = x.shape[axis]
        places = torch.tensor(
            [place + size if place < 0 else place for place in call.sizes(1)], dtype=torch.int64
        )
        shape = list(index.array.shape)
    else:
        shape = list(places.shape)
    taken = x.index_select(axis, places.reshape(-1))
    if len(shape) == 1:
        return taken
    return taken.reshape([*x.shape[:axis], *shape, *x.shape[axis + 1 :]])


@onnx_op("GatherElements")
def gather_elements(call: Call) -> Result:
    """One place along an axis for every element of the index."""
    return torch.gather(call.tensor(0), call.integer("axis", 0), call.tensor(1))


@onnx_op("ScatterND")
def scatter_nd(call: Call) -> Result:
    """A copy with some places, one in each row of the indices, written anew."""
    call.require("reduction", "none")
    x, places, updates = call.tensor(0), call.tensor(1), call.tensor(2)
    return x.index_put(list(places.unbind(-1)), updates)


@onnx_op("Expand")
def expand(call: Call) -> Result:
    """Sizes of 1 repeated to a shape, in both directions."""
    x, sizes = call.tensor(0), call.sizes(1)
    shape = [1] * (len(sizes) - x.dim()) + list(x.shape)
    sizes = [1] * (len(shape) - len(sizes)) + sizes
    if call.fixed_batch is not None and not _is(shape[0], 1) and _is(sizes[0], call.fixed_batch):
        sizes[0] = shape[0]
    target = [have if _is(size, 1) else size for have, size in zip(shape, sizes, strict=True)]
    return x.expand(target)


@onnx_op("Tile")
def tile(call: Call) -> Result:
    """Repeated along every axis."""
    return call.tensor(0).repeat(call.sizes(1))


@onnx_op("Pad")
def pad(call: Call) -> Result:
    """Padded or, with negative sizes, cut: a constant, a reflection or the edge."""
    x = call.tensor(0)
    sizes = call.sizes(1) if call.has(1) else call.integers("pads")
    axes = [axis % x.dim() for axis in call.sizes(3)] if call.has(3) else list(range(x.dim()))
    value = float(call.number(2, call.real("value", 0.0)))
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(axes):
        before[axis], after[axis] = sizes[place], sizes[place + len(axes)]
    mode = call.text("mode", "constant")
    first = next((dim for dim in range(x.dim()) if before[dim] or after[dim]), None)
    if first is None:
        return x
    if mode == "constant":
        return F.pad(x, _pairs(before[first:], after[first:]), value=value)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names or first < x.dim() - 3 or first < 1:
        raise call.step.refused("a constant, or reflect and edge of spatial axes", mode)
    # torch pads 1, 2 or 3 last axes of a value with one or two axes before them.
    count = max(x.dim() - first, x.dim() - 2)
    return F.pad(x, _pairs(before[-count:], after[-count:]), mode=names[mode])


def _pairs(before: list[int], after: list[int]) -> list[int]:
    """Sizes as torch wants them: the last axis first."""
    pairs = zip(reversed(before), reversed(after), strict=True)
    return [size for pair in pairs for size in pair]


@onnx_op("DepthToSpace")
def depth_to_space(call: Call) -> Result:
    """Channels to pixels: CRD is torch's pixel_shuffle, DCR has the block outermost."""
    x, block = call.tensor(0), call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


@onnx_op("SpaceToDepth")
def space_to_depth(call: Call) -> Result:
    """Pixels to channels, the block outermost."""
    x, block = call.tensor(0), call.integer("blocksize", 1)
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)
