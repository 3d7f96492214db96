"""Operators of torchvision: regions of interest, deformable convolution, boxes by value."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import between, conv, image, net, noise, pruned_like_silenced
from torch import nn
from torchvision.ops import DeformConv2d, nms, roi_align, roi_pool

from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune

BOXES = [[0, 0, 0, 5, 5], [1, 1, 0, 4, 3], [1, 0, 2, 3, 5]]


@pytest.mark.parametrize("read", [roi_align, roi_pool])
def test_channels_pass_through_regions(read):
    """What is read inside a box is read channel by channel."""
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    model = between(lambda y: read(y, boxes, 3))

    pruned = prune(model, (image(),), criterion="random", dynamic_batch=False)

    assert ("b.weight", 1, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots
    assert pruned.proof.outcome == "proved"


def test_a_level_without_regions_pins_nothing():
    """Features of a level are written to the rows that belong to it; one may have none."""

    def regions(m, x):
        wide, high = m.a(x), m.c(x)
        boxes = torch.tensor(BOXES, dtype=torch.float32)
        large = (boxes[:, 3] - boxes[:, 1]) > 10
        out = torch.zeros(3, 8, 3, 3)
        for level, chosen in ((wide, ~large), (high, large)):
            rows = torch.where(chosen)[0]
            out[rows] = roi_align(level, boxes[rows], 3)
        return m.b(out.flatten(1))

    model = net(regions, a=conv(3, 8), c=conv(3, 8), b=nn.Linear(72, 5))

    pruned = prune(model, (image(),), criterion="random", dynamic_batch=False)

    kept = {(axis.parameter, axis.dim): axis.keep for axis in pruned.plan.axes}
    assert kept["a.weight", 0] == kept["c.weight", 0]
    assert len(kept["a.weight", 0]) == 4
    assert pruned.proof.outcome in ("proved", "weak")


def _deformed(**options):
    places = 2 * 9 * options.get("groups_of_offsets", 1)
    made = DeformConv2d(8, 8, 3, padding=1, groups=options.get("groups", 1))
    return net(
        lambda m, x: m.b(m.deform(m.a(x), m.offset(x))),
        a=conv(3, 8),
        deform=made,
        offset=conv(3, places),
        b=conv(8, 4),
    )


def test_a_deformable_convolution_loses_channels_on_both_sides():
    """Channels of x go with dim 1 of the weight; offsets are numbered by kernel position."""
    pruned = prune(_deformed(), (image(),), criterion="random")

    gone = {(axis.parameter, axis.dim) for axis in pruned.plan.axes}
    assert {("deform.weight", 1), ("deform.weight", 0), ("b.weight", 1)} <= gone
    assert ("offset.weight", 0) not in gone
    assert pruned.proof.outcome == "proved"


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ({"groups": 2}, {("a.weight", 0), ("deform.weight", 0)}),
        ({"groups_of_offsets": 2}, {("a.weight", 0), ("offset.weight", 0)}),
    ],
)
def test_groups_of_a_deformable_convolution_stay(options, stays):
    """Each group of channels has its own offsets or weights: its number is not changed."""
    pins = {(pin.parameter, pin.dim) for pin in analyze(_deformed(**options), (image(),)).pins}

    assert stays <= pins


def test_a_number_of_boxes_that_follows_values_is_no_mismatch():
    """How many boxes stay depends on scores, and so on what was removed: not a fault of surgery."""

    def detect(m, x):
        seen = m.b(torch.relu(m.a(x)))
        corners = seen[:, :2].abs()
        boxes = torch.cat([corners, corners + 1 + seen[:, 2:4].abs()], 1)
        stays = nms(boxes, seen[:, 4], 0.3)
        likely = seen[stays][seen[stays][:, 4] > 0]
        return m.c(likely).sum(0), seen

    model = net(detect, a=nn.Linear(8, 16), b=nn.Linear(16, 8), c=nn.Linear(8, 3))

    pruned = prune(model, (noise(40, 8),), criterion="random", dynamic_batch=False)

    assert pruned.proof.outcome == "proved"
    assert any(axis.parameter == "a.weight" for axis in pruned.plan.axes)


def test_rows_repeated_by_value_are_no_mismatch():
    """A length regulator: how often a row is repeated follows values; its width may go."""

    def regulate(m, x):
        times = m.d(m.a(x).relu())[:, 0].abs().mul(3).round().long() + 1
        return m.b(torch.repeat_interleave(m.c(x), times, 0)).sum(0, keepdim=True)

    model = net(
        regulate, a=nn.Linear(8, 16), d=nn.Linear(16, 1), c=nn.Linear(8, 24), b=nn.Linear(24, 3)
    )

    pruned = prune(model, (noise(6, 8),), criterion="random", dynamic_batch=False)

    assert pruned.model.c.weight.shape == (12, 8)
    assert pruned.proof.outcome == "proved"


def test_unpooling_follows_the_maxima():
    """Each channel goes back to the places its maxima were found at (SegNet)."""

    def unpooled(y):
        small, places = F.max_pool2d(y, 2, return_indices=True)
        return F.max_unpool2d(small.tanh(), places, 2)

    pruned_like_silenced(between(unpooled), image())


def test_the_silenced_model_reads_regions_alike():
    """Against the eager model with masked readers, on other inputs."""
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    model = net(
        lambda m, x: m.c(m.b(roi_align(m.a(x), boxes, 2)).flatten(1)),
        a=conv(3, 8),
        b=conv(8, 6, 1),
        c=nn.Linear(24, 4),
    )

    pruned_like_silenced(model, image(), dynamic_batch=False)
