"""Movement: the op runs on the labels, so a position is followed wherever it goes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import between, between_features, conv, image, net, noise, pruned_like_silenced
from torch import nn

from edgeprune.errors import PlanError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.surgery.prune import prune


def partner(analysis: Analysis, position: int, maker: str = "a.weight", reader: str = "b.weight"):
    """The positions of the reader's input dim that go with a position of the maker."""
    slots = analysis.unit_of(maker, 0, position).slots
    return next(slot.positions for slot in slots if slot[:2] == (reader, 1))


def test_flip_removes_the_mirrored_reader():
    """Channel 3 of 8 flipped is channel 4."""
    pruned = pruned_like_silenced(between(lambda y: y.flip(1)), image())

    assert ("b.weight", 1, (4,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


def test_a_value_beside_its_own_flip_pairs_channels():
    """y + y.flip: channels i and 7 - i meet, so four units of two remain."""
    model = net(lambda m, x: (y := m.a(x), m.b(y + y.flip(1)))[1], a=conv(3, 8), b=conv(8, 4))
    pruned = pruned_like_silenced(model, image())

    assert partner(pruned.analysis, 1) == (1, 6)
    assert [group.width for group in pruned.analysis.groups] == [4]


def test_roll_shifts_the_reader():
    """Rolled by 2, channel 7 of 8 is heard at position 1."""
    pruned = pruned_like_silenced(between(lambda y: y.roll(2, 1)), image())

    assert partner(pruned.analysis, 7) == (1,)


def test_roll_over_two_dims_keeps_the_other_shift():
    """Channels rolled by 2 and rows by 3 at once: the rows still roll after surgery."""
    pruned_like_silenced(between(lambda y: y.roll((2, 3), (1, 2))), image())


@pytest.mark.parametrize("shift", [8, 16])
def test_a_full_turn_stays_no_turn(shift):
    """Rolled by all of the 8 channels nothing moves; rolled by 8 the 4 that stay would not."""
    pruned_like_silenced(between(lambda y: y.roll((shift, 1), (1, 2))), image())
    pruned_like_silenced(between(lambda y: y.roll(shift + 8, 1)), image(), keep_fraction=0.7)


def test_roll_over_all_axes_pins():
    """Without dims, the last features of one sample become the first of the next: nothing goes."""
    model = between_features(lambda y: y.roll(3))

    with pytest.raises(PlanError, match="rolled across all of its axes"):
        prune(model, (noise(2, 8),), dynamic_batch=False)


def test_constant_padding_of_channels_stays():
    """Three new channels around eight: the reader's positions 0, 9 and 10 may not go."""
    model = between(lambda y: F.pad(y, (0, 0, 0, 0, 1, 2)), 8, 11)
    pruned = pruned_like_silenced(model, image())

    assert partner(pruned.analysis, 3) == (4,)
    pins = [pin for pin in pruned.analysis.pins if (pin.parameter, pin.dim) == ("b.weight", 1)]
    assert [pin.positions for pin in pins] == [(0, 9, 10)]


@pytest.mark.parametrize(("widths", "width"), [((-1, -1), 6), ((-2, 3), 9), ((1, -3), 6)])
def test_negative_padding_cuts_channels(widths, width):
    """pad(-1, -1) reads channels 1-6 of 8; with a mixed sign the cut side still cuts."""
    model = between(lambda y: F.pad(y, (0, 0, 0, 0, *widths)), 8, width)
    pruned = pruned_like_silenced(model, image())

    assert partner(pruned.analysis, 3) == (3 + widths[0],)


@pytest.mark.parametrize(("mode", "positions"), [("reflect", (3, 9)), ("circular", (3,))])
def test_padding_that_repeats_positions_ties_the_copies(mode, positions):
    """Eight features padded by 2 and 2: feature 1 is also at 3 reflected, feature 7 at 9 and 1."""
    model = between_features(lambda y: F.pad(y, (2, 2), mode=mode), 8, 12)
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    # By hand: padded[j] = x[|j - 2|] on the left when reflected, x[(j - 2) % 8] when circular.
    index = {"reflect": [2, 1, *range(8), 6, 5], "circular": [6, 7, *range(8), 0, 1]}[mode]
    for feature in range(8):
        assert partner(pruned.analysis, feature) == tuple(
            j for j, i in enumerate(index) if i == feature
        )


def test_space_padding_does_not_touch_channels():
    """Replicated rows and columns: eight units, one channel each."""
    model = between(lambda y: F.pad(y, (2, 2, 1, 1), mode="replicate"))

    assert [g.width for g in pruned_like_silenced(model, image()).analysis.groups] == [8]


def test_split_with_unequal_survivors():
    """Parts of 3 and 7 become groups of their own and lose different shares."""

    def run(m, x):
        one, two = m.a(x).split([3, 7], 1)
        return m.b(one) + m.c(two)

    model = net(run, a=conv(3, 10), b=conv(3, 4), c=conv(7, 4))
    pruned = pruned_like_silenced(model, image(), keep_fraction=0.4)

    assert ("c.weight", 1, (2,)) in pruned.analysis.unit_of("a.weight", 0, 5).slots
    assert [len(group.keep) for group in pruned.plan.groups] == [1, 3]


def test_chunk_into_unequal_parts():
    """Nine channels in two chunks are 5 and 4."""

    def run(m, x):
        one, two = m.a(x).chunk(2, 1)
        return m.b(one) + m.c(two)

    pruned_like_silenced(net(run, a=conv(3, 9), b=conv(5, 4), c=conv(4, 4)), image())


def test_splitting_the_batch_writes_no_batch_size():
    """Splitting samples is not rewritten when channels go: it still runs on other batches."""

    def run(m, x):
        halves = m.a(x).tensor_split(2, 0)
        return m.b(torch.cat(halves[::-1]))

    model = net(run, a=conv(3, 8), b=conv(8, 4))
    pruned_like_silenced(model, image(4))


def test_unbind_over_heads_ties_the_members():
    """Members of an unbind are there by number: columns go, never a member."""

    def run(m, x):
        return m.b(sum(m.a(x).view(-1, 6, 4).unbind(1)))

    pruned = pruned_like_silenced(net(run, a=nn.Linear(8, 24), b=nn.Linear(4, 3)), noise(2, 8))

    assert pruned.analysis.unit_of("a.weight", 0, 1).slots[0].positions == (1, 5, 9, 13, 17, 21)


def test_a_single_channel_picked_out_stays():
    """y[:, 2] names channel 2, so seven of eight may go, and the number follows the rest."""

    def run(m, x):
        y = m.a(x)
        return m.b(y) * (1 + y[:, 2:3] * 0 + y.select(1, 2).unsqueeze(1).tanh())

    analysis = analyze(net(run, a=conv(3, 8), b=conv(8, 4)), (image(),))

    assert [group.width for group in analysis.groups] == [7]
    assert any("picked out" in pin.reason and pin.positions == (2,) for pin in analysis.pins)


@pytest.mark.parametrize("cut", [slice(1, None, 2), slice(2, 7), slice(0, 8, 3), slice(-3, None)])
def test_slices_follow_what_survives(cut):
    """Start, stop and step: kept positions of the slice are found among the kept channels."""
    positions = tuple(range(8))[cut]
    model = between(lambda y: y[:, cut], 8, len(positions))
    pruned = pruned_like_silenced(model, image())

    assert partner(pruned.analysis, positions[1]) == (1,)


def test_a_slice_of_nothing_stays_one():
    """What lies behind the last position (heads that are not there) is empty in any width."""
    pruned_like_silenced(
        between(lambda y: torch.cat((y[:, 8:], y, y[:, :0] * 2), 1) + y[:, 8:].sum(1, True)),
        image(),
    )


def test_narrow_is_a_slice():
    """narrow(1, 2, 5): channel 4 is heard at 2."""
    model = between(lambda y: y.narrow(1, 2, 5), 8, 5)

    assert partner(pruned_like_silenced(model, image()).analysis, 4) == (2,)


@pytest.mark.parametrize("baked", [False, True])
def test_channel_shuffle_written_as_reshape(baked):
    """view(2, 4), transpose, reshape of 8 channels: rectangular, so (i, i + 4) are one unit."""

    def run(m, x):
        y = m.a(x)
        batch, size = (-1, 6) if baked else (y.shape[0], y.shape[2])
        return m.b(y.view(batch, 2, 4, size, size).transpose(1, 2).reshape(batch, 8, size, size))

    pruned = pruned_like_silenced(net(run, a=conv(3, 8), b=conv(8, 4)), image())

    assert pruned.analysis.unit_of("a.weight", 0, 1).slots[0].positions == (1, 5)
    assert partner(pruned.analysis, 1) == (2, 3)


def test_channel_shuffle_as_an_op_goes_channel_by_channel():
    """channel_shuffle(2) of 8: channel 5 (group 1, place 1) is heard at 3."""
    model = between(lambda y: F.channel_shuffle(y, 2))
    pruned = pruned_like_silenced(model, image())

    assert partner(pruned.analysis, 5) == (3,)
    assert [group.width for group in pruned.analysis.groups] == [8]


def test_pixel_shuffle_takes_square_factor_channels():
    """16 channels shuffled by 2 are 4: channels 8-11 make channel 2."""
    model = between(lambda y: F.pixel_shuffle(y, 2), 16, 4)
    unit = pruned_like_silenced(model, image()).analysis.unit_of("a.weight", 0, 9)

    assert unit.slots[0].positions == (8, 9, 10, 11)
    assert ("b.weight", 1, (2,)) in unit.slots


def test_rows_of_pixels_never_go():
    """Behind a mean over channels only pixels remain: the shuffle may not lose rows of them."""
    model = net(
        lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2).mean(1).flatten(1)),
        a=conv(3, 16),
        b=nn.Linear(144, 4),
    )
    analysis = analyze(model, (image(),))

    assert all(table.parameter != "b.weight" for g in analysis.groups for table in g.tables)


def test_pixel_unshuffle_gives_four_readers():
    """4 channels unshuffled by 2 are 16: channel 1 is heard at 4-7."""
    model = between(lambda y: F.pixel_unshuffle(y, 2), 4, 16)

    assert partner(pruned_like_silenced(model, image()).analysis, 1) == (4, 5, 6, 7)


def test_unflatten_makes_columns():
    """12 features as (3, 4) read along the 4: three rows lose the same columns."""
    model = between_features(lambda y: y.unflatten(1, (3, 4)), 12, 4)
    pruned = pruned_like_silenced(model, noise(2, 8))

    assert pruned.analysis.unit_of("a.weight", 0, 1).slots[0].positions == (1, 5, 9)


def test_unflatten_of_the_batch_writes_no_batch_size():
    """A size that is the batch stays symbolic, so other batches run."""

    def run(m, x):
        return m.b(m.a(x).flatten(0, 1).unflatten(0, (x.shape[0], 6)).sum(1))

    pruned_like_silenced(net(run, a=nn.Linear(8, 12), b=nn.Linear(12, 5)), noise(2, 6, 8))


@pytest.mark.parametrize("written", [12, -1])
def test_expand_follows_its_input(written):
    """expand over a new dim with the width written out or -1."""
    model = between_features(lambda y: y.unsqueeze(1).expand(-1, 4, written), 12, 12)
    pruned_like_silenced(model, noise(2, 8))


@pytest.mark.parametrize(
    ("copies", "positions"),
    [
        (lambda y: y.repeat(1, 2), (2, 8)),
        (lambda y: y.tile((2,)), (2, 8)),
        (lambda y: y.repeat_interleave(2, 1), (4, 5)),
        (lambda y: y.repeat_interleave(2, 1, output_size=12), (4, 5)),
    ],
)
def test_repeats_tie_the_copies(copies, positions):
    """Feature 2 of 6, repeated: [x, x] at 2 and 8, interleaved at 4 and 5."""
    model = between_features(lambda y: copies(y), 6, 12)

    assert partner(pruned_like_silenced(model, noise(2, 8)).analysis, 2) == positions


@pytest.mark.parametrize(
    "spread", [lambda g: g.repeat(1, 8, 1, 1), lambda g: g.expand(-1, 8, 6, 6)]
)
def test_a_size_of_one_spread_over_the_width(spread):
    """One gate for all channels, repeated 8 times in the code: the 8 follows the channels."""
    model = net(lambda m, x: m.b(m.a(x) * spread(m.g(x))), a=conv(3, 8), g=conv(3, 1), b=conv(8, 4))

    assert [g.width for g in pruned_like_silenced(model, image()).analysis.groups] == [8]


def test_repeat_over_two_dims():
    """Repeated along tokens and features at once: both still happen after surgery."""
    model = net(
        lambda m, x: m.b(m.a(x).unsqueeze(1).repeat(1, 3, 2)).tanh(),
        a=nn.Linear(8, 6),
        b=nn.Linear(12, 5),
    )
    pruned_like_silenced(model, noise(2, 8))


def test_windows_side_by_side_are_a_view():
    """unfold(1, 2, 2) of 8 read along the window: the even or the odd positions go."""
    model = between_features(lambda y: y.unfold(1, 2, 2), 8, 2)

    unit = pruned_like_silenced(model, noise(2, 8)).analysis.unit_of("a.weight", 0, 0)
    assert unit.slots[0].positions == (0, 2, 4, 6)


@pytest.mark.parametrize(("size", "step", "width"), [(1, 2, 4), (2, 1, 7), (2, 3, 3)])
def test_other_windows_over_features_pin(size, step, width):
    """Gaps and overlaps would shift when a position goes."""
    model = between_features(lambda y: y.unfold(1, size, step).sum(2), 8, width)

    assert analyze(model, (noise(2, 8),)).groups == ()


def test_diagonal_of_a_gram_matrix():
    """Row i and column i of y^T y are channel i: one unit, also position i of the diagonal."""

    def run(m, x):
        y = m.a(x)
        return m.b((y.transpose(1, 2) @ y).diagonal(dim1=1, dim2=2))

    pruned = pruned_like_silenced(net(run, a=nn.Linear(8, 6), b=nn.Linear(6, 5)), noise(2, 5, 8))

    assert partner(pruned.analysis, 4) == (4,)


def test_diagonal_through_data_pins():
    """A diagonal of (tokens, features): token 2 cannot go, so feature 2 cannot."""
    model = between_features(lambda y: y.diagonal(dim1=1, dim2=2), 4, 4)
    analysis = analyze(model, (noise(2, 4, 8),))

    assert analysis.groups == ()
    assert any(pin.reason == "read along a diagonal" for pin in analysis.pins)


@pytest.mark.parametrize("keep_fraction", [0.5, 0.01])
def test_squeeze_does_not_swallow_a_width_of_one(keep_fraction):
    """squeeze() drops the spatial ones; a single kept channel is a width, not a one to drop."""
    model = net(
        lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 1).squeeze()),
        a=conv(3, 8),
        b=nn.Linear(8, 5),
    )

    assert prune(model, (image(3),), keep_fraction=keep_fraction, dynamic_batch=False).proof.holds


@pytest.mark.parametrize("order", [[3, 1, 0, 2, 7, 6, 5, 4], [3, -1, 0], [True, False] * 4])
def test_constant_indices_move_channels(order):
    """y[:, indices] with numbers that the model holds: each reader hears what the number says."""
    index = torch.tensor(order)
    sources = torch.arange(8)[index].tolist()
    model = net(lambda m, x: m.b(m.a(x)[:, m.p]), a=conv(3, 8), b=conv(len(sources), 4), p=index)
    pruned = pruned_like_silenced(model, image())

    assert partner(pruned.analysis, sources[1]) == (1,)


def test_indices_written_in_the_code_move_channels():
    """y[:, [3, 1, 0, 2]] and index_select alike."""
    one = between(lambda y: y[:, [3, 1, 0, 2]], 8, 4)
    two = net(
        lambda m, x: m.b(m.a(x).index_select(1, m.p)),
        a=conv(3, 8),
        b=conv(4, 4),
        p=torch.tensor([3, 1, 0, 2]),
    )

    for model in (one, two):
        assert partner(pruned_like_silenced(model, image()).analysis, 3) == (0,)


@pytest.mark.parametrize(
    "move",
    [
        lambda y: y.movedim(1, -1).movedim(-1, 1),
        lambda y: y.swapaxes(1, 3).swapdims(1, 3),
        lambda y: y.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda y: y.mT.mT,
        lambda y: torch.rot90(y, 1, (2, 3)),
        lambda y: y.flatten(2).unflatten(2, (6, 6)).contiguous(),
        lambda y: y.view(-1, 8, 36).view_as(y) + y.reshape(-1, 8, 36).reshape_as(y),
        lambda y: y.unsqueeze(0).squeeze(0).expand_as(y).clone(),
    ],
)
def test_moves_that_end_where_they_began_change_nothing(move):
    """There and back again: eight units, channel by channel."""
    pruned = pruned_like_silenced(between(lambda y: move(y)), image())

    assert partner(pruned.analysis, 3) == (3,)


def test_hard_coded_reshapes_are_rewritten():
    """view(n, 512) and view(n, 8, 64) in the code follow the channels that stay."""

    def run(m, x):
        y = m.a(x)
        tokens = m.b(y.view(x.size(0), 8, 36).transpose(1, 2).reshape(-1, 8)).view(x.size(0), 36, 6)
        return m.c(tokens.mean(1)) + m.d(y.view(x.size(0), 8 * 36))

    model = net(run, a=conv(3, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 4), d=nn.Linear(288, 4))
    pruned = pruned_like_silenced(model, image())

    assert len(pruned.analysis.unit_of("a.weight", 0, 3).slots[-1].positions) == 36
