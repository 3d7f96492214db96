"""Units, groups and pins as a whole, and the registry of rules."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from small_nets import between, conv, image, net, noise
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.graph.analysis import analyze
from edgeprune.graph.registry import known_overloads, rule, rule_for

aten = torch.ops.aten


def residual():
    """Two widths that depend on each other, a head and a BatchNorm."""

    def run(m, x):
        y = m.n(m.a(x))
        return m.h((y + m.c(torch.relu(m.b(y)))).mean((2, 3)))

    return net(
        run,
        a=conv(3, 8),
        n=nn.BatchNorm2d(8),
        b=conv(8, 6),
        c=conv(6, 8),
        h=nn.Linear(8, 4),
    )


def test_units_partition_what_they_cover():
    """No position of any dim is in two units, and none is in a unit and a pin."""
    analysis = analyze(residual(), (image(),))
    seen = Counter(
        (slot.parameter, slot.dim, position)
        for group in analysis.groups
        for unit in group.units
        for slot in unit.slots
        for position in slot.positions
    )
    pinned = {(p.parameter, p.dim, position) for p in analysis.pins for position in p.positions}

    assert set(seen.values()) == {1}
    assert not pinned & set(seen)


def test_unit_of_finds_the_unit_from_any_of_its_slots():
    """Asked by any position of it, the same unit comes back."""
    analysis = analyze(residual(), (image(),))

    for unit in analysis.groups[0].units:
        for slot in unit.slots:
            assert analysis.unit_of(slot.parameter, slot.dim, slot.positions[0]) == unit


def test_groups_are_named_by_the_weight_that_makes_the_width():
    """In graph order, with their kind."""
    analysis = analyze(residual(), (image(),))

    assert [(g.name, g.kind, g.width) for g in analysis.groups] == [
        ("a.weight", "channel", 8),
        ("b.weight", "channel", 6),
    ]


def test_a_pinned_position_is_explained():
    """unit_of on the output layer says that it is an output and where."""
    analysis = analyze(residual(), (image(),))

    with pytest.raises(UsageError, match=r"h\.weight dim 0 position 1.*is an output of the model"):
        analysis.unit_of("h.weight", 0, 1)
    with pytest.raises(UsageError, match="none of that name"):
        analysis.unit_of("h.weight", 0, 4)


def test_an_unknown_op_is_named_and_pins_only_what_feeds_it():
    """cumprod has no rule: the layer before it stays, the layer beside it does not."""
    model = net(
        lambda m, x: m.b(m.a(x).cumprod(-1)) + m.d(m.c(x)),
        a=nn.Linear(8, 6),
        b=nn.Linear(6, 4),
        c=nn.Linear(8, 5),
        d=nn.Linear(5, 4),
    )
    analysis = analyze(model, (noise(2, 8),))

    assert analysis.unknown == ("aten.cumprod.default",)
    assert [group.name for group in analysis.groups] == ["c.weight"]


def test_the_width_of_a_table_of_numbers_is_data():
    """Two coordinates that a small network reads stay both; its hidden units may go."""
    model = net(
        lambda m, x: m.b(m.a(x) + m.late(m.early(m.places).relu())),
        a=nn.Linear(8, 6),
        b=nn.Linear(6, 4),
        early=nn.Linear(2, 12),
        late=nn.Linear(12, 6),
        places=torch.randn(5, 2),
    )

    analysis = analyze(model, (noise(2, 5, 8),))

    assert {group.width for group in analysis.groups} == {6, 12}
    reasons = {(pin.parameter, pin.dim): pin.reason for pin in analysis.pins}
    assert "fixed numbers" in reasons["early.weight", 1]
    assert "fixed numbers" in reasons["places", 1]


def test_unread_places_of_an_integer_table_are_not_units():
    """Position ids behind the example's length are read by nobody: numbers, not neurons."""
    model = net(
        lambda m, i: m.b(m.a(i) + m.p(m.ids[:, : i.shape[1]])),
        a=nn.Embedding(9, 6),
        p=nn.Embedding(12, 6),
        b=nn.Linear(6, 4),
        ids=torch.arange(12)[None],
    )

    analysis = analyze(model, (torch.arange(8).reshape(2, 4),))

    assert [group.width for group in analysis.groups] == [6]
    assert any("fixed numbers" in pin.reason for pin in analysis.pins if pin.parameter == "ids")


def test_a_gated_neuron_is_a_neuron_and_a_head_with_a_table_a_head():
    """Two rows of a fused gate make one column: a neuron. A bias table has one column a head."""

    def attend(m, x):
        q, k, v = (y.unflatten(-1, (4, 4)).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
        bias = m.table[torch.arange(5)[:, None] + torch.arange(5)].permute(2, 0, 1)
        mixed = ((q @ k.transpose(2, 3)) + bias).softmax(-1) @ v
        gate, value = m.fused(m.o(mixed.transpose(1, 2).flatten(2))).chunk(2, -1)
        return m.b(gate.sigmoid() * value)

    model = net(
        attend,
        qkv=nn.Linear(16, 48),
        table=nn.Parameter(torch.randn(9, 4)),
        o=nn.Linear(16, 7),
        fused=nn.Linear(7, 20),
        b=nn.Linear(10, 3),
    )

    analysis = analyze(model, (noise(2, 5, 16),))

    kinds = {group.width: group.kind for group in analysis.groups}
    assert kinds == {4: "head", 7: "neuron", 10: "neuron"}


def test_an_op_that_hears_no_label_needs_no_rule():
    """A grid of positions takes nothing that could go: there is nothing unknown about it."""

    def grid(m, x):
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        return m.b(m.a(x) * rows.cumsum(0) + columns)

    analysis = analyze(net(grid, a=conv(3, 8), b=conv(8, 4)), (image(size=4),))

    assert analysis.unknown == ()
    assert [group.name for group in analysis.groups] == ["a.weight"]


def test_kept_labels_remove_exactly_the_marked_units():
    """Marking one unit of 8 takes as many labels as it has positions in values and tensors."""
    analysis = analyze(between(lambda y: y), (image(),))
    mask = np.zeros(8, dtype=bool)
    mask[3] = True

    kept = analysis.kept_labels({"a.weight": mask})
    # Slots in a.weight, a.bias and b.weight, one position each.
    assert (~kept).sum() == 3
    assert analysis.kept_labels({}).all()


def test_tensors_list_the_state_dict():
    """Names, shapes and ties of the dense model."""
    model = net(
        lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(6, 6, bias=False), b=nn.Linear(6, 6)
    )
    model.b.weight = model.a.weight
    tensors = {t.name: (t.shape, t.same_as) for t in analyze(model, (noise(2, 6),)).tensors}

    assert tensors == {
        "a.weight": ((6, 6), None),
        "b.weight": ((6, 6), "a.weight"),
        "b.bias": ((6,), None),
    }


def test_every_rule_has_a_worked_example():
    """The docstring of a rule says what it does with numbers in it."""
    rules = {rule_for(overload) for overload in known_overloads()}

    assert [r.__name__ for r in rules if not re.search(r"\d", r.__doc__ or "")] == []


def test_a_rule_is_registered_by_exact_overload():
    """A packet is refused with the spelling that works; a second rule for an op too."""
    with pytest.raises(TypeError, match=r"Write aten\.flip\.default"):
        rule(aten.flip)(lambda t: None)
    with pytest.raises(TypeError, match="without a rule"):
        rule(aten.flip.default)(lambda t: None)


def test_in_place_ops_share_the_rule_of_their_plain_form():
    """hardswish_ has hardswish's rule; an op nobody knows has none."""
    assert rule_for(aten.hardswish_.default) is rule_for(aten.hardswish.default)
    assert rule_for(aten.relu_.default) is rule_for(aten.add.Tensor)
    assert rule_for(aten.cumprod.default) is None
    assert rule_for(torch.sin) is None
