"""Convolutions: ordinary, grouped, depthwise, transposed."""

from __future__ import annotations

import torch

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.operators import CONVOLUTIONS, TRANSPOSED
from edgeprune.graph.registry import rule
from edgeprune.graph.trace import Trace


@rule(*CONVOLUTIONS)
def convolution(
    t: Trace,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
) -> Value:
    """Input channels and the weight's dim 1 become units; the result carries the weight's dim 0.

    x (2, 8, 5, 5), weight (16, 8, 3, 3): x's channel 3 and weight[:, 3] are one unit.
    With groups = 4, weight (16, 2, 3, 3): a group is the unit, channels 2-3 of x with rows 4-7
    of the weight. Depthwise is the case of one channel a group. Where the kernel has one position,
    as over (2, 3, 64) with a weight (1, 3, 1), the 64 keep their places, and their labels.
    """
    fixed = _fixed_dims(x, weight, stride, padding)
    return _convolve(t, x, weight, bias, groups, fixed, into=1, out_of=0)


@rule(*TRANSPOSED)
def transposed(
    t: Trace,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: object = 1,
    padding: object = 0,
    output_padding: object = 0,
    groups: int = 1,
    dilation: object = 1,
) -> Value:
    """As `convolution`, with the weight's dims 0 and 1 in each other's role.

    x (2, 8, 5, 5), weight (8, 16, 3, 3): x's channel 3 and weight[3] are one unit.
    """
    fixed = _fixed_dims(x, weight, stride, padding) if not any(_each(output_padding, 1)) else ()
    return _convolve(t, x, weight, bias, groups, fixed, into=0, out_of=1)


def _convolve(
    t: Trace,
    x: Value,
    weight: Value,
    bias: Value | None,
    groups: int,
    fixed: tuple[int, ...],
    into: int,
    out_of: int,
) -> Value:
    channel = len(x.shape) - len(weight.shape) + 1
    inputs, passing = _channels(t, x, channel, fixed)
    reads, makes = _weight_layers(t, weight, into, out_of)
    shape = t.shape
    if groups == 1:
        t.meet(inputs, reads, reason="its width is that of data, or of a fixed reader")
        for layer in inputs.layers:
            t.read(0, _along(layer, channel, len(x.shape)))
        out = makes
    elif _goes_by_groups(t, inputs, reads, makes, groups):
        out = _grouped(t, inputs, reads, makes, groups, transposed=into == 0)
    else:
        out = _within_groups(t, inputs, reads, makes, groups, transposed=into == 0)
        for layer in inputs.layers:
            t.read(0, _along(layer, channel, len(x.shape)))
    if bias is not None:
        out = t.meet(out, bias)
    layers = tuple(_along(layer, channel, len(shape)) for layer in out.layers)
    return t.settle(Value(shape, (*passing, *layers)))


def _fixed_dims(x: Value, weight: Value, stride: object, padding: object) -> tuple[int, ...]:
    """Dims of x that the kernel does not mix: one position wide, step 1, nothing added."""
    count = len(weight.shape) - 2
    added = (0,) * count if isinstance(padding, str) else _each(padding, count)
    return tuple(
        len(x.shape) - count + i
        for i, (size, step, width) in enumerate(
            zip(weight.shape[2:], _each(stride, count), added, strict=True)
        )
        if (size, step, width) == (1, 1, 0)
    )


def _each(written: object, count: int) -> tuple[object, ...]:
    """One number a dim: torch takes a single one, or a list of one, for all of them."""
    numbers = tuple(written) if isinstance(written, list | tuple) else (written,)
    return numbers * count if len(numbers) == 1 else numbers


def _channels(
    t: Trace, x: Value, channel: int, fixed: tuple[int, ...]
) -> tuple[Value, list[torch.Tensor]]:
    """x's labels as one vector a layer, and the layers whose positions keep their places."""
    vectors: list[torch.Tensor] = []
    passing: list[torch.Tensor] = []
    for layer in x.layers:
        dims = varying(layer)
        if all(dim < channel or dim in fixed for dim in dims):
            passing.append(layer)
        elif layer.shape[channel] == 1:
            t.labels.pin(layer, t.cause("a convolution slides over this axis"))
        else:
            others = tuple(dim for dim in dims if dim != channel)
            t.tie(layer, others, "read by one kernel")
            for dim in others:
                layer = layer.narrow(dim, 0, 1)
            vectors.append(layer.reshape(-1))
    return Value((x.shape[channel],), tuple(vectors)), passing


def _weight_layers(t: Trace, weight: Value, into: int, out_of: int) -> tuple[Value, Value]:
    """The weight's layers along its input dim and along its output dim, each as a vector."""
    found: dict[int, list[torch.Tensor]] = {into: [], out_of: []}
    for layer in weight.layers:
        dims = varying(layer)
        if len(dims) == 1 and dims[0] in found:
            found[dims[0]].append(layer.reshape(-1))
        else:
            t.labels.pin(layer, t.cause("the kernel's size", by_nature=True))
    return (
        Value((weight.shape[into],), tuple(found[into])),
        Value((weight.shape[out_of],), tuple(found[out_of])),
    )


def _goes_by_groups(t: Trace, inputs: Value, reads: Value, makes: Value, groups: int) -> bool:
    """Whether whole groups are the units, or else the positions inside them.

    Two groups of a residual width of many are all or nothing; a channel of each is not.
    """
    layers = (*inputs.layers, *makes.layers, *reads.layers)
    sizes = {value.shape[0] for value in (inputs, reads, makes)}
    if groups in sizes or min(sizes) == 1 or not layers:
        # One channel in or out a group (depthwise): there is nothing inside one.
        return True
    return t.prefers_heads(layers[0], usually=True)


def _within_groups(
    t: Trace, inputs: Value, reads: Value, makes: Value, groups: int, *, transposed: bool
) -> Value:
    """A position inside a group is the unit, the same one in every group: the groups stay.

    x (2, 8, 5, 5), weight (12, 2, 3, 3), groups = 4: channels 0, 2, 4, 6 of x with weight[:, 0];
    rows 1, 4, 7, 10 of the weight go together.
    """
    why = "the same position in every group of a grouped convolution"
    for value in (inputs, reads if transposed else makes):
        for layer in value.layers:
            t.tie(layer.reshape(groups, -1), (0,), why)
    reason = "its width is that of data, or of a fixed reader"
    if transposed:
        t.meet(inputs, reads, reason=reason)
        size = makes.shape[0]
        return Value((size * groups,), tuple(layer.repeat(groups) for layer in makes.layers))
    inside = tuple(layer.reshape(groups, -1)[0] for layer in inputs.layers)
    t.meet(Value((inputs.shape[0] // groups,), inside), reads, reason=reason)
    return makes


def _grouped(
    t: Trace, inputs: Value, reads: Value, makes: Value, groups: int, *, transposed: bool
) -> Value:
    """Whole groups are the units: each of its inputs with each of its outputs.

    An ordinary grouped weight has all outputs along dim 0 and one group's inputs along dim 1; a
    transposed one has all inputs along dim 0 and one group's outputs along dim 1.
    """
    why = "within one group of a grouped convolution"
    shared, every = (makes, reads) if transposed else (reads, makes)
    t.pin(shared, why, by_nature=True)
    anchors = []
    for value in (inputs, every):
        layers = []
        for vector in value.layers:
            table = vector.reshape(groups, -1)
            t.tie(table, (1,), why)
            layers.append(table[:, 0])
        anchors.append(Value((groups,), tuple(layers)))
    met = t.meet(*anchors)
    if not transposed:
        return every
    # One group's outputs stand for those of all groups: each output carries its group's label.
    size = makes.shape[0]
    outputs = tuple(layer.repeat_interleave(size) for layer in met.layers)
    return Value((size * groups,), outputs)


def _along(vector: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    shape = [1] * ndim
    shape[dim] = vector.shape[0]
    return vector.reshape(shape)
