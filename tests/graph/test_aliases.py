"""Writes through views: every alias sees them, in the shrunk model as in the dense one."""

from __future__ import annotations

import pytest
from small_nets import between, between_features, conv, image, net, noise, pruned_like_silenced
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune


def written(write):
    """between(): `write(y)` changes y in place, then y itself is read."""

    def move(y):
        write(y)
        return y

    return move


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y[..., :4].add_(1),
        lambda y: y[:, :4].add_(y[:, 4:]),
        lambda y: y[:, 2:5].relu_(),
        lambda y: y[:, 3:].mul_(2).sub_(0.5),
        lambda y: y.view(-1, 2, 4, 6, 6)[:, 0].mul_(3),
        lambda y: y.transpose(1, 3)[..., 5:].add_(1),
        lambda y: y.split([3, 5], 1)[1].sigmoid_(),
        lambda y: y.chunk(2, 1)[0].copy_(y.chunk(2, 1)[1]),
        lambda y: y[:, 1:3].zero_(),
        lambda y: y[:, :2].fill_(0.7),
        lambda y: y.unbind(2)[0].mul_(2),
        lambda y: y.unsqueeze(0).squeeze(0).flatten(2)[:, :, 3:].neg_(),
    ],
)
def test_a_write_through_a_view_is_seen_by_the_base(write):
    """Conv, a write into a part of its result, conv."""
    pruned_like_silenced(between(written(write)), image())


def test_augmented_assignment():
    """y[:, :4] += 1 is a slice, an add_ and a copy_ into the slice."""

    def move(y):
        y[:, :4] += 1
        y[..., 2:] *= 2
        return y

    pruned_like_silenced(between(move), image())


def test_a_write_through_a_transpose_in_one_sample():
    """y.t()[2:4] of features: columns 2 and 3 of all samples."""
    pruned_like_silenced(between_features(written(lambda y: y.t()[2:4].mul_(3))), noise(2, 8))


def test_another_maker_writes_into_a_slice():
    """y[:, 4:].add_(b(x)): b's channel 1 goes with y's channel 5."""

    def run(m, x):
        y = m.a(x)
        y[:, 4:].add_(m.b(x))
        return m.c(y)

    model = net(run, a=conv(3, 8), b=conv(3, 4), c=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    assert ("a.weight", 0, (5,)) in pruned.analysis.unit_of("b.weight", 0, 1).slots


def test_a_view_read_after_the_base_was_written():
    """The view was taken first, the base written, then the view read: it sees the write."""

    def run(m, x):
        y = m.a(x)
        view = y.flip(1)[:, :4], y[:, :4]
        y.mul_(m.g(x.mean((2, 3)))[:, :, None, None])
        return m.b(y) + m.c(view[1])

    model = net(run, a=conv(3, 8), g=nn.Linear(3, 8), b=conv(8, 4), c=conv(4, 4))
    pruned_like_silenced(model, image())


def test_one_channel_written_stays():
    """y[:, 2] = 0 names channel 2."""

    def write(y):
        y[:, 2] = 0.5

    pruned = pruned_like_silenced(between(written(write)), image())
    assert [group.width for group in pruned.analysis.groups] == [7]


@pytest.mark.parametrize("step", [2, 3])
def test_a_stepped_slice_written_in_place_is_pinned_or_right(step):
    """What is kept of y[:, 1::2] is no view of what is kept of y: a copy would lose the write."""
    model = between(written(lambda y: y[:, 1::step].relu_()))
    analysis = analyze(model, (image(),))

    if analysis.groups:
        pruned_like_silenced(model, image())
    else:
        assert any("written in place" in pin.reason for pin in analysis.pins)


def test_shifted_by_one_all_channels_hang_together():
    """y[:, 1:] += y[:, :-1] chains every channel to the next: all or nothing."""
    analysis = analyze(between(written(lambda y: y[:, 1:].add_(y[:, :-1].clone()))), (image(),))

    assert analysis.groups == ()


def test_data_with_a_layer_written_into_it_stays():
    """A copy of the input is data: writing a layer's result into it pins the layer."""

    def run(m, x):
        y = x.clone()
        y[:, :2] = m.a(x)
        return m.b(y)

    assert analyze(net(run, a=conv(3, 2), b=conv(3, 4)), (image(),)).groups == ()


def test_a_mask_chosen_by_data_pins():
    """y[y < 0] = 0.5 is index_put_ with data; torch.where is the spelling that shrinks."""

    def move(y):
        y[y < 0] = 0.5
        return y

    assert analyze(between(move), (image(),)).groups == ()


def test_the_input_is_not_changed_by_pruning():
    """A model that writes into its input: the example given for pruning keeps its values."""
    model = net(lambda m, x: m.b(m.a(x.mul_(2)).tanh()), a=conv(3, 8), b=conv(8, 4))
    x = image()

    assert prune(model, (x,)).proof.outcome == "proved"
    assert x.equal(image())
