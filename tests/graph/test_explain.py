"""Explanations: they agree with the analysis, and their chains hold together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.graph.explain import Account, explain
from edgeprune.graph.joins import joins_of_groups
from tests.graph.small_nets import conv, image, net, noise, param


def of(analysis: Analysis, tensor: str, dim: int) -> Account:
    """The account of one dim of a tensor."""
    (found,) = (a for a in explain(analysis, tensor).accounts if a.place == f"{tensor} dim {dim}")
    return found


def residual() -> Analysis:
    """Three convolutions that are added up, the sum is the output; one inner width is free."""
    return analyze(
        net(
            lambda m, x: (s := m.a(x) + m.b(m.inner(x))) + m.c(s),
            a=conv(3, 8),
            inner=conv(3, 6),
            b=conv(6, 8),
            c=conv(8, 8),
        ),
        (image(),),
    )


def transformer() -> Analysis:
    """Attention with a fused projection, a norm, and a bare scale."""

    def run(m, x):
        x = m.first(x)
        q, k, v = m.qkv(m.norm(x)).reshape(-1, 5, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind()
        heads = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return m.out(x + m.scale * m.proj(heads.reshape(-1, 5, 6)))

    layers = {
        "first": nn.Linear(4, 6),
        "norm": nn.LayerNorm(6),
        "qkv": nn.Linear(6, 18),
        "proj": nn.Linear(6, 6),
        "scale": param(6),
        "out": nn.Linear(6, 3),
    }
    return analyze(net(run, **layers), (noise(2, 5, 4),))


def rolled() -> Analysis:
    """Every channel is added to the next one, the last to the first."""
    layers = {"a": conv(3, 8), "b": conv(8, 4)}
    return analyze(net(lambda m, x: m.b((y := m.a(x)) + y.roll(1, 1)), **layers), (image(),))


def sorted_by_data() -> Analysis:
    """An operator without a rule, whose input is also read by a convolution."""
    layers = {"a": conv(3, 8), "b": conv(8, 4)}
    return analyze(
        net(lambda m, x: (m.b(y := m.a(x)), y.cumprod(1).mean((1, 2, 3))), **layers), (image(),)
    )


MADE = {"residual": residual, "transformer": transformer, "rolled": rolled}
MADE["sorted"] = sorted_by_data


@pytest.fixture(scope="module", params=MADE)
def analysis(request) -> Analysis:
    """Each of the nets, analysed."""
    return MADE[request.param]()


def test_an_explanation_says_what_the_analysis_says(analysis):
    """Every pin is told with its reason and line; every unit of a group lies where it is said."""
    for pin in analysis.pins:
        account = of(analysis, pin.parameter, pin.dim)
        told = [(part.reason, part.where, part.positions) for part in account.stuck]
        assert (pin.reason, pin.where, len(pin.positions)) in told
    for group in analysis.groups:
        for table in group.tables:
            account = of(analysis, table.parameter, table.dim)
            (mine,) = (part for part in account.removable if part.group == group.name)
            assert (mine.units, mine.positions_a_unit) == table.positions.shape
            assert {(c.parameter, c.dim) for c in mine.coupled} == {
                (t.parameter, t.dim) for t in group.tables
            }


def test_a_chain_has_no_gap_and_ends_at_the_cause(analysis):
    """It begins at the dim that was asked for, each step goes on where the last one ended, and its
    nodes are in the graph with a source line."""
    nodes = {node.name: node for node in analysis.captured.module.graph.nodes}
    for tensor in analysis.tensors:
        for account in explain(analysis, tensor.name).accounts:
            for part in account.stuck:
                assert part.advice
                assert not part.node or part.node in nodes
                if part.chain:
                    assert part.chain[0].before == account.place
                for one, two in pairwise(part.chain):
                    assert one.after == two.before
                for step in part.chain:
                    assert step.where == nodes[step.node].meta["where"] != ""


def test_the_chain_to_an_output_names_each_sum_on_the_way():
    """b is added to a, and their sum to c: b's width is that of the output."""
    account = of(residual(), "b.weight", 0)

    (part,) = account.stuck
    assert part.reason == "is an output of the model"
    assert [(step.how, step.operator) for step in part.chain] in (
        [("added to", "add"), ("added to", "add")],
        [("added to", "add")],
    )
    assert part.chain[0].before == "b.weight dim 0"
    assert "Nothing" in part.advice


def test_what_goes_with_a_unit_is_told_by_kind():
    """The embedding width of a transformer: added to, multiplied with, normalised by, read by."""
    account = of(transformer(), "first.weight", 0)

    (part,) = account.removable
    kinds = {c.parameter: c.step.how for c in part.coupled if c.step is not None}
    assert kinds["first.bias"] == "has the bias"
    assert kinds["norm.weight"] == "normalised by"
    assert kinds["qkv.weight"] == kinds["out.weight"] == "read by"
    assert kinds["proj.weight"] in ("added to", "multiplied with")
    assert kinds["scale"] in ("added to", "multiplied with")


def test_a_head_has_its_positions_tied():
    """From one row of a head to the columns that read it: heads are units of three rows."""
    account = of(transformer(), "qkv.weight", 0)

    assert [(r.kind, r.width, r.positions_a_unit) for r in account.removable] == [("head", 2, 9)]


def test_a_width_that_is_all_or_nothing_says_what_ties_it():
    """A channel and the next one of the same layer: the sum at which they meet, with its line."""
    account = of(rolled(), "a.weight", 0)

    (part,) = account.stuck
    assert part.reason.startswith("all positions stand or fall together")
    assert part.positions == 8
    (step,) = part.chain
    assert (step.how, step.operator) == ("added to", "add")
    assert step.before == step.after == "a.weight dim 0"


def test_a_node_a_module_and_a_tensor_can_be_asked_for():
    """The module's answer is that of its tensors; a node's is that of its axes."""
    analysis = residual()
    first = next(n.name for n in analysis.captured.module.graph.nodes if "conv" in n.name)

    module = explain(analysis, "inner")
    node = explain(analysis, first)

    assert (module.kind, node.kind) == ("module", "node")
    assert {a.place for a in module.accounts} >= {"inner.weight dim 0", "inner.bias dim 0"}
    assert [s.reason for a in node.accounts for s in a.stuck] == ["is an output of the model"]


def test_tensors_without_a_width_are_told_too():
    """An unread tensor, and one of single positions: the reason, not a crash or an empty answer."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu() * self.scale)

    (account,) = explain(analyze(Idle().eval(), (noise(2, 4),)), "scale").accounts
    assert account.stuck[0].reason == "each of its dims has a single position"


def test_a_tied_tensor_is_found_by_each_name():
    """The second name of a tied weight has the first one's account."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
            self.b = nn.Linear(6, 9, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.norm(self.a(x)))

    analysis = analyze(Tied().eval(), (torch.arange(6).reshape(2, 3),))
    assert explain(analysis, "b.weight").accounts == explain(analysis, "a.weight").accounts


def test_a_name_that_is_nothing_is_a_usage_error_with_near_ones():
    """The message names what was asked and the nearest names."""
    with pytest.raises(UsageError, match=r"explaining 'inner.wight': .* Did you mean inner.weig"):
        explain(residual(), "inner.wight")


def test_makers_are_the_weights_whose_output_a_width_is():
    """Of a convolution dim 0, of a transposed one dim 1, of an embedding dim 1; never what reads
    the width, a bias or a norm."""
    layers = {"a": conv(3, 8), "up": nn.ConvTranspose2d(8, 6, 2), "bn": nn.BatchNorm2d(6)}
    layers["b"] = conv(6, 4)
    images = analyze(net(lambda m, x: m.b(m.bn(m.up(m.a(x)))), **layers), (image(),))
    words = net(lambda m, x: m.b(m.table(x)), table=nn.Embedding(9, 6), b=nn.Linear(6, 4))
    tokens = analyze(words, (torch.arange(6).reshape(2, 3),))

    memory = net(lambda m, x: m.b(m.r(x)[0]), r=nn.LSTM(3, 6, batch_first=True), b=nn.Linear(6, 4))
    steps = analyze(memory, (noise(2, 5, 3),))
    stacked = net(
        lambda m, x: m.o(
            torch.einsum("bneh,eho->bno", torch.einsum("bni,eih->bneh", x, m.w).relu(), m.v)
        ),
        w=param(3, 8, 6),
        v=param(3, 6, 7),
        o=nn.Linear(7, 4),
    )
    experts = analyze(stacked, (noise(2, 5, 8),))
    assert [group.makers for group in images.groups] == [("a.weight",), ("up.weight",)]
    assert [group.makers for group in tokens.groups] == [("table.weight",)]
    assert [group.makers for group in steps.groups] == [("r.weight_ih_l0", "r.weight_hh_l0")]
    readers = {("v", 0), ("v", 1), ("o.weight", 1)}
    tables = [table for group in experts.groups for table in group.tables]
    assert {(t.parameter, t.dim) for t in tables if not t.makes} == readers


def test_joins_are_searched_once_for_all_groups(analysis):
    """The first unit of every group leads to exactly the dims of its group."""
    joins = joins_of_groups(analysis)
    for index, group in enumerate(analysis.groups):
        part = analysis.partition
        first = int(((part.group_of_label == index) & (part.unit_of_label == 0)).argmax())
        assert {(c.parameter, c.dim) for c in joins.coupled(first)} == {
            (t.parameter, t.dim) for t in group.tables
        }
