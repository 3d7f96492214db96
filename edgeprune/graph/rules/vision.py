"""Operators of torchvision: regions of interest, and convolutions that choose where to read.

Named by their schema, as they exist only where torchvision is imported.
"""

from __future__ import annotations

from edgeprune.graph.labels import Value, varying
from edgeprune.graph.observe import TensorFact
from edgeprune.graph.registry import foreign_rule
from edgeprune.graph.rules.convolution import convolution
from edgeprune.graph.rules.window import channels_beside
from edgeprune.graph.trace import Trace


@foreign_rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(t: Trace, x: Value, regions: Value, *args: object) -> Value | tuple[Value, ...]:
    """Each channel is read inside each region; regions stay, channels pass.

    x (2, 8, 32, 32), regions (5, 5), an image and four corners each -> (5, 8, 7, 7): channel 3
    stays channel 3. A pool gives with the maximum the place it was found at, by channel as well.
    """
    t.pin(regions, "its positions are places to read at")
    layers = channels_beside(t, x, (0, 2, 3), "regions name their image and places in it")
    fact = t.facts[t.node.name]
    members = fact if isinstance(fact, tuple) else (fact,)
    values = tuple(Value(m.shape, layers) for m in members if isinstance(m, TensorFact))
    return values if isinstance(fact, tuple) else values[0]


@foreign_rule("torchvision::deform_conv2d")
def deformed(
    t: Trace, x: Value, weight: Value, offset: Value, mask: Value, bias: Value, *args: int
) -> Value:
    """As a convolution over channels; offsets and masks are numbered by kernel position, and stay.

    x (2, 8, 5, 5), weight (16, 8, 3, 3), offset (2, 18, 3, 3): x's channel 3 and weight[:, 3] are
    one unit, and the result has 16 channels that may go. With groups of channels, or of offsets,
    what they number stays.
    """
    groups, offset_groups = args[-3:-1]
    for places in (offset, mask):
        t.pin(places, "its positions are places to read at")
    why = "groups of a deformable convolution stay"
    if groups > 1 or offset_groups > 1:
        t.pin(x, why)
    if groups > 1:
        for value in (weight, bias):
            t.pin(value, why)
        return Value(t.shape, ())
    for layer in x.layers:
        if 0 in varying(layer):
            t.labels.pin(layer, t.cause("every image has offsets of its own"))
    layers = channels_beside(t, x, (0, 2, 3), "a deformable convolution slides over this axis")
    return convolution(t, Value(x.shape, layers), weight, bias)
