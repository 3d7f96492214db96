"""Matrix products: linear layers and bare parameters, on either side."""

from __future__ import annotations

import copy

import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
import transformers.integrations.moe
from small_nets import net, noise, param, pruned_like_silenced, require_equal
from torch import nn

from edgeprune.exporting.onnx import export
from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune

assert transformers.integrations.moe  # it registers the product over experts


def keeps(pruned, parameter, dim):
    """Kept positions of one dim, as the plan has them."""
    return list(next(a.keep for a in pruned.plan.axes if (a.parameter, a.dim) == (parameter, dim)))


@pytest.mark.parametrize("shape", [(2, 8), (2, 5, 8), (2, 3, 5, 8)])
def test_linear_on_any_number_of_dims(shape):
    """Feature 3 is row 3 of a and column 3 of b, whatever stands before the last dim."""
    model = net(lambda m, x: m.b(m.a(x).tanh()), a=nn.Linear(8, 6), b=nn.Linear(6, 4))
    pruned = pruned_like_silenced(model, noise(*shape))

    expected = {("a.weight", 0, (3,)), ("a.bias", 0, (3,)), ("b.weight", 1, (3,))}
    assert set(pruned.analysis.unit_of("a.weight", 0, 3).slots) == expected


def test_matmul_with_a_parameter_on_the_right():
    """relu(x W) U: by hand, with the kept columns of W and rows of U only."""
    model = net(lambda m, x: (x @ m.w).relu() @ m.u, w=param(8, 6), u=param(6, 4))
    x = noise(3, 5, 8)
    pruned = prune(model, (x,), criterion="random")

    kept = keeps(pruned, "w", 1)
    assert kept == keeps(pruned, "u", 0)
    require_equal(pruned.model(x), (x @ model.w[:, kept]).relu() @ model.u[kept])


def test_matmul_with_a_parameter_on_the_left():
    """U relu(W x): rows of W with columns of U."""
    model = net(lambda m, x: m.u @ (m.w @ x).relu(), w=param(6, 8), u=param(4, 6))
    x = noise(3, 8, 5)
    pruned = prune(model, (x,), criterion="random")

    kept = keeps(pruned, "w", 0)
    require_equal(pruned.model(x), model.u[:, kept] @ (model.w[kept] @ x).relu())


def test_bmm_of_stacked_experts():
    """Experts (3, 8, 6) and (3, 6, 4): the hidden width is one width of all experts."""
    model = net(
        lambda m, x: torch.bmm(torch.bmm(x, m.w).relu(), m.u), w=param(3, 8, 6), u=param(3, 6, 4)
    )
    x = noise(3, 2, 8)
    pruned = prune(model, (x,), criterion="random", dynamic_batch=False)

    kept = keeps(pruned, "w", 2)
    expected = torch.bmm(torch.bmm(x, model.w[:, :, kept]).relu(), model.u[:, kept])
    require_equal(pruned.model(x), expected)


def test_summed_experts_may_go_as_a_whole():
    """A sum over experts reads them: experts are units too, beside the hidden width."""
    model = net(
        lambda m, x: ((x.unsqueeze(1) @ m.w).relu() @ m.u).sum(1),
        w=param(3, 8, 6),
        u=param(3, 6, 4),
    )
    x = noise(2, 5, 8)
    pruned = prune(model, (x,), criterion="random", keep_fraction=0.6)

    experts, hidden = keeps(pruned, "w", 0), keeps(pruned, "w", 2)
    w, u = model.w[experts][:, :, hidden], model.u[experts][:, hidden]
    require_equal(pruned.model(x), ((x.unsqueeze(1) @ w).relu() @ u).sum(1))


def test_addmm_keeps_its_factors():
    """beta b + alpha x W, as addmm has it; the bias goes with the column."""
    model = net(
        lambda m, x: torch.addmm(m.c, torch.addmm(m.b, x, m.w, beta=0.5, alpha=2).relu(), m.u),
        w=param(8, 6),
        b=param(6),
        u=param(6, 4),
        c=param(4),
    )
    x = noise(3, 8)
    pruned = prune(model, (x,), criterion="random")

    kept = keeps(pruned, "w", 1)
    hidden = (0.5 * model.b[kept] + 2 * x @ model.w[:, kept]).relu()
    require_equal(pruned.model(x), model.c + hidden @ model.u[kept])


def test_an_outer_product_has_the_width_twice():
    """y y^T summed over one of its dims: feature i is row i and column i."""
    model = net(
        lambda m, x: (y := m.a(x), m.b((y.unsqueeze(2) * y.unsqueeze(1)).tanh().sum(1)))[1],
        a=nn.Linear(8, 6),
        b=nn.Linear(6, 4),
    )
    x = noise(3, 8)
    pruned = prune(model, (x,), criterion="random")

    kept = keeps(pruned, "a.weight", 0)
    y = model.a(x)[:, kept]
    outer = (y.unsqueeze(2) * y.unsqueeze(1)).tanh().sum(1)
    require_equal(pruned.model(x), outer @ model.b.weight[:, kept].T + model.b.bias)


def test_a_weight_made_of_parts():
    """F.linear with cat of two weights: rows keep their place behind each other."""
    model = net(
        lambda m, x: m.c(F.linear(x, torch.cat([m.w, m.v])).relu()),
        w=param(4, 8),
        v=param(6, 8),
        c=nn.Linear(10, 4),
    )
    pruned = pruned_like_silenced(model, noise(2, 8))

    assert ("c.weight", 1, (5,)) in pruned.analysis.unit_of("v", 0, 1).slots


def test_token_mixing_pins_the_tokens():
    """A linear layer over tokens: their number is the data's, the hidden width is free."""
    model = net(
        lambda m, x: m.o(m.b(F.gelu(m.a(x.transpose(1, 2)))).transpose(1, 2) + x),
        a=nn.Linear(5, 12),
        b=nn.Linear(12, 5),
        o=nn.Linear(8, 4),
    )
    pruned = pruned_like_silenced(model, noise(2, 5, 8))

    assert [group.name for group in pruned.analysis.groups] == ["a.weight"]


def test_distances_to_prototypes_sum_over_the_width():
    """-sum (y - p)^2: a squared distance over what is kept; prototypes themselves stay."""
    model = net(
        lambda m, x: -(m.a(x).unsqueeze(1) - m.p).pow(2).sum(-1), a=nn.Linear(8, 6), p=param(4, 6)
    )
    x = noise(3, 8)
    pruned = prune(model, (x,), criterion="random")

    kept = keeps(pruned, "p", 1)
    difference = model.a(x)[:, kept].unsqueeze(1) - model.p[:, kept]
    require_equal(pruned.model(x), -difference.pow(2).sum(-1))


def test_an_unlabelled_factor_pins_the_product():
    """x x^T contracts data with data, so a layer on the result hears a width that stays."""
    model = net(lambda m, x: m.b(m.a(x @ x.transpose(1, 2))), a=nn.Linear(5, 6), b=nn.Linear(6, 4))
    analysis = analyze(model, (noise(2, 5, 8),))

    assert [group.name for group in analysis.groups] == ["a.weight"]


# Features (B, 5, 6) and parameters; 7 features come out.
PRODUCTS = {
    "tensordot": (lambda m, y: torch.tensordot(y, m.w, ([2], [0])), {"w": (6, 7)}),
    "tensordot over two dims": (
        lambda m, y: torch.tensordot(y.unsqueeze(1), m.w, 2),
        {"w": (5, 6, 7)},
    ),
    "outer": (lambda m, y: y @ torch.outer(m.w, m.v), {"w": (6,), "v": (7,)}),
    "addmv": (
        lambda m, y: y @ (m.u * torch.addmv(m.w, m.v, m.z).unsqueeze(1)),
        {"u": (6, 7), "w": (6,), "v": (6, 3), "z": (3,)},
    ),
    "addbmm": (
        lambda m, y: y @ torch.addbmm(m.w, m.v, m.u, beta=0.5, alpha=2),
        {"w": (6, 7), "v": (3, 6, 5), "u": (3, 5, 7)},
    ),
    "addr": (lambda m, y: y @ torch.addr(m.w, m.v, m.u), {"w": (6, 7), "v": (6,), "u": (7,)}),
    "bilinear": (
        lambda m, y: F.bilinear(y, y.tanh().mean(1, keepdim=True).expand_as(y), m.w, m.v),
        {"w": (7, 6, 6), "v": (7,)},
    ),
    "a weight of two factors": (
        lambda m, y: F.linear(y, m.w + m.v @ m.u),
        {"w": (7, 6), "v": (7, 3), "u": (3, 6)},
    ),
    "stacked weights": (lambda m, y: (y.unsqueeze(1) @ m.w).sum(1), {"w": (3, 6, 7)}),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_spelled_otherwise(name):
    """Each contracts 6 features and makes 7: as if the removed ones were 0 where they are read."""
    multiply, shapes = PRODUCTS[name]
    model = net(
        lambda m, x: m.b(multiply(m, m.a(x).tanh()).tanh()),
        a=nn.Linear(8, 6),
        b=nn.Linear(7, 4),
        **{key: param(*shape) for key, shape in shapes.items()},
    )
    x = noise(3, 5, 8)
    ends = {("a.weight", 0), ("b.weight", 1)}
    mine = [
        g.name
        for g in analyze(model, (x,)).groups
        if ends & {(t.parameter, t.dim) for t in g.tables}
    ]
    pruned = prune(model, (x,), criterion="random", only=tuple(mine))

    assert pruned.proof.outcome == "proved"
    assert pruned.model.a.weight.shape[0] == 3
    assert pruned.model.b.weight.shape[1] == 4
    made, read = (
        torch.zeros(size).index_fill(0, torch.tensor(keeps(pruned, name, dim)), 1.0)
        for name, dim, size in (("a.weight", 0, 6), ("b.weight", 1, 7))
    )
    heard = multiply(model, model.a(x).tanh() * made).tanh()
    require_equal(pruned.model(x), model.b(heard * read))


def _routed(model, x, made=1.0, heard=1.0):
    """Each row through the expert of its largest gate; the groups of the batch are of any size."""
    order = model.gate(x).argmax(1).sort()
    rows = (model.a(x) * made)[order.indices]
    ends = torch.histc(order.values.float(), 3, 0, 2).cumsum(0).to(torch.int64)
    multiply = torch.ops.transformers.grouped_mm_fallback
    inside = multiply(rows, model.up, ends).tanh() * heard
    return model.b(multiply(inside, model.down, ends)[order.indices.argsort()])


def test_experts_lose_what_is_inside_and_not_their_number(tmp_path):
    """Rows sorted by expert, a matrix each: widths shrink alike in all of them, ONNX agrees."""
    model = net(
        _routed,
        gate=nn.Linear(8, 3),
        a=nn.Linear(8, 6),
        up=param(3, 6, 10),
        down=param(3, 10, 7),
        b=nn.Linear(7, 4),
    )
    pruned = prune(model, (noise(5, 8),), criterion="random")

    assert pruned.proof.outcome == "proved"
    assert pruned.model.up.shape == (3, 3, 5)
    assert pruned.model.down.shape[:2] == (3, 5)
    fresh = noise(9, 8, seed=8)
    made, heard, read = (
        torch.zeros(size).index_fill(0, torch.tensor(keeps(pruned, name, dim)), 1.0)
        for name, dim, size in (("a.weight", 0, 6), ("up", 2, 10), ("b.weight", 1, 7))
    )
    silenced = copy.deepcopy(model)
    silenced.b.weight.data *= read
    require_equal(pruned.model(fresh), _routed(silenced, fresh, made, heard))
    export(pruned, tmp_path / "experts.onnx")
    session = ort.InferenceSession(tmp_path / "experts.onnx")
    # Of one row, two experts get none.
    for rows in (noise(1, 8), fresh):
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: rows.numpy()})[0])
        assert torch.allclose(got, pruned.model(rows), atol=1e-5)
