"""Factors that the graph keeps of the dense model reach the weights of the user's class."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from returned_class import changed, returned
from small_nets import net, noise, param, randomised
from torch import nn

import edgeprune


class Spelled(nn.Module):
    """RMSNorm as the code of language models spells it; its weight by way of `gain`."""

    def __init__(self, gain: Callable[[torch.Tensor], torch.Tensor], eps: float = 1e-2) -> None:
        super().__init__()
        self.weight, self.eps, self.gain = param(8), eps, gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = x.float().pow(2).mean(-1, keepdim=True) + self.eps
        return self.gain(self.weight) * (x * torch.rsqrt(spread)).to(x.dtype)


class Divided(Spelled):
    """The same with a division by a root, and the weight inside addcmul."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = ((x * x).mean(dim=-1, keepdim=True) + self.eps).sqrt()
        return torch.addcmul(x, self.weight.view(1, -1), x / spread)


def between(norm: nn.Module) -> nn.Module:
    """A norm of 8 between two layers; half of its width goes."""
    return net(lambda m, x: m.b(m.n(m.a(x)).relu()), a=nn.Linear(6, 8), n=norm, b=nn.Linear(8, 4))


@pytest.mark.parametrize(
    "norm",
    [
        Spelled(lambda w: w),
        Spelled(lambda w: 1.0 + w.float()),
        Divided(lambda w: w),
        nn.RMSNorm(8, eps=1e-2),
    ],
    ids=["llama", "gemma", "addcmul", "torch"],
)
def test_a_mean_over_the_dense_count_moves_into_weight_and_eps(norm: nn.Module) -> None:
    """w x / sqrt(sum/8 + eps) of 4 kept is (w sqrt 2) x / sqrt(sum/4 + 2 eps): both are told."""
    result = returned(between(norm), noise(3, 6))

    assert changed(result)["n.eps"] == pytest.approx((1e-2, 2e-2))
    assert result.rescaled == ("n.weight",)


def test_the_smallest_eps_becomes_a_number() -> None:
    """RMSNorm without eps takes the smallest step of the dtype: twice that is written."""
    result = returned(between(nn.RMSNorm(8)), noise(3, 6))

    assert changed(result)["n.eps"] == (None, pytest.approx(2 * torch.finfo(torch.float32).eps))


def test_a_norm_without_weights_hands_its_factor_to_every_layer_behind_it() -> None:
    """Two readers of the same normalised value: both take the root of 2."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3)
            self.eps = 1e-2

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.a(x)
            y = y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt()
            return self.b(y), self.c(y)

    assert set(returned(randomised(Bare()), noise(3, 6)).rescaled) == {"b.weight", "c.weight"}


def test_an_eps_in_the_source_is_refused_with_its_line() -> None:
    """No attribute can take its factor; a result that is nearly right is none."""
    with pytest.raises(edgeprune.ModelNotSupported, match="test_factors_in_classes.py:"):
        returned(between(Written()), noise(3, 6))


class Written(Spelled):
    """An eps that no attribute has."""

    def __init__(self) -> None:
        super().__init__(lambda w: w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 3e-2))


def test_a_weight_that_something_else_reads_takes_no_factor() -> None:
    """A norm applied twice to widths that both shrink, and a weight that is an output's too."""
    model = between(Spelled(lambda w: w))
    model.run = lambda m, x: m.b(m.n(m.a(x)).relu() + m.n.weight)

    with pytest.raises(edgeprune.ModelNotSupported, match="a mean over the dense width"):
        returned(model, noise(3, 6))


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, as far as proportion goes."""
    table = torch.linspace(0.1, 1.0, x.shape[1]).view(-1, 1)
    return x * table.cos() + x * table.sin()


@pytest.mark.parametrize(
    "of_query",
    [lambda m, x: m.q(x), lambda m, x: rotated(m.q(x)), lambda m, x: m.n(m.q(x))],
    ids=["linear", "rotary", "normed"],
)
def test_queries_take_the_scale_of_the_dense_head(of_query: Callable[..., torch.Tensor]) -> None:
    """Attention with the default scale takes that of the narrower head: queries make up for it."""
    model = net(
        lambda m, x: m.o(F.scaled_dot_product_attention(of_query(m, x), m.k(x), m.v(x))),
        q=nn.Linear(6, 16),
        n=nn.LayerNorm(16),
        k=nn.Linear(6, 16),
        v=nn.Linear(6, 16),
        o=nn.Linear(16, 5),
    )

    result = returned(model, noise(2, 5, 6))

    assert len(result.rescaled) == 2
    assert result.rescaled[0] in ("q.weight", "n.weight")


def test_queries_that_something_else_reads_take_no_scale() -> None:
    """One product for queries, keys and values: scaling it would scale all three."""
    model = net(
        lambda m, x: m.o(F.scaled_dot_product_attention(*m.qkv(x).chunk(3, -1))),
        qkv=nn.Linear(6, 48),
        o=nn.Linear(16, 5),
    )
    pruned = edgeprune.prune(model, (noise(2, 5, 6),))

    with pytest.raises(edgeprune.ModelNotSupported, match="scaled_dot_product_attention"):
        edgeprune.to_module(pruned, model)


def test_a_mean_without_eps_moves_whole() -> None:
    """A mean over channels that a layer reads: its weight takes the share that is left."""

    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(1, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.a(x).relu()
            return self.b(y), self.c(y.mean(-1, keepdim=True))

    assert returned(randomised(Averaged()), noise(3, 6)).rescaled == ("c.weight",)


def test_the_modes_of_the_pruned_graph_are_not_touched() -> None:
    """A graph in training mode keeps its mode and its statistics."""
    model = net(
        lambda m, x: m.b(m.n(m.s(m.a(x)))),
        a=nn.Linear(6, 8),
        s=nn.BatchNorm1d(8),
        n=Spelled(lambda w: w),
        b=nn.Linear(8, 4),
    )
    pruned = edgeprune.prune(model, (noise(3, 6),))
    pruned.model.train()
    before = pruned.model.get_buffer("s.running_mean").clone()

    edgeprune.to_module(pruned, model)

    assert pruned.model.training
    assert torch.equal(pruned.model.get_buffer("s.running_mean"), before)


class Own(nn.Module):
    """A hidden norm whose forward is given; `numbers` become attributes."""

    def __init__(self, run: Callable[..., torch.Tensor], **numbers: object) -> None:
        super().__init__()
        self.run, self.w, self.free = run, param(8), param(6)
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(6, 4)
        for name, number in numbers.items():
            setattr(self, name, number)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm, its weight first."""
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def test_a_number_that_equals_eps_is_not_eps() -> None:
    """Which attribute forward adds is traced: a dropout rate of the same value stays."""

    def run(m: Own, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(rms(m.a(x), m.w, m.eps), m.rate, m.training)
        return m.b(y)

    result = returned(randomised(Own(run, eps=0.1, rate=0.1)), noise(3, 6))

    assert changed(result)["eps"] == (0.1, 0.2)
    assert result.module.rate == 0.1


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.b(rms(m.a(x), m.w, 1e-6)),
        lambda m, x: m.b(rms(m.a(x), m.w, m.eps)) + m.c(rms(x, m.free, m.eps)),
        lambda m, x: m.b(rms(m.a(x), m.w, m.eps)) + m.c(F.layer_norm(x, (6,), eps=m.eps)),
        lambda m, x: m.b(rms(m.a(x), m.w, 2 * m.eps)),
        lambda m, x: m.b(rms(m.a(x), m.w, m.eps)) + m.c(rms(x, m.free, math.sqrt(m.eps) ** 2)),
        lambda m, x: m.b(rms(m.a(x), m.w, m.eps)) + m.c(F.normalize(x, eps=m.eps)),
    ],
    ids=["in the source", "another norm", "layer_norm", "computed", "in C code", "a limit"],
)
def test_an_eps_that_serves_others_too_is_refused(run: Callable[..., torch.Tensor]) -> None:
    """1e-6 shows in no output of usual size; an attribute changes only if all readers want it."""
    with pytest.raises(edgeprune.ModelNotSupported, match="a mean over the dense width"):
        returned(randomised(Own(run, eps=1e-6)), noise(3, 6))


class Settings:
    """A plain object with numbers."""

    def __init__(self) -> None:
        self.eps = 1e-2


@pytest.mark.parametrize(
    ("run", "held", "name"),
    [
        (lambda m, x: m.b(rms(m.a(x), m.w, m.held.eps)), Settings(), "held.eps"),
        (lambda m, x: m.b(rms(m.a(x), m.w, m.held["eps"])), {"eps": 1e-2}, "held.eps"),
    ],
)
def test_eps_is_found_in_objects_and_dicts(
    run: Callable[..., torch.Tensor], held: object, name: str
) -> None:
    """Where integers are looked for, floats are too."""
    result = returned(randomised(Own(run, held=held)), noise(3, 6))

    assert changed(result)[name] == (1e-2, 2e-2)


@pytest.mark.parametrize(
    "norm",
    [
        lambda m, y: rms(y, m.w, m.eps),
        lambda m, y: m.w * (y / (y.pow(2).mean(-1, keepdim=True) + m.eps) ** 0.5),
        lambda m, y: (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + m.eps)).relu(),
        lambda m, y: m.w * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 0)),
    ],
    ids=["left to right", "power", "relu to the next layer", "no eps"],
)
def test_other_spellings(norm: Callable[..., torch.Tensor]) -> None:
    """Whatever is proportional hands the factor on."""
    assert returned(randomised(Own(lambda m, x: m.b(norm(m, m.a(x))), eps=1e-2)), noise(3, 6))


def test_one_norm_without_weights_serves_two_widths_that_shrink_alike() -> None:
    """Its eps changes once."""

    def run(m: Own, x: torch.Tensor) -> torch.Tensor:
        one, two = m.a(x), m.d(x)
        scaled = [y * torch.rsqrt(y.square().mean(-1, keepdim=True) + m.eps) for y in (one, two)]
        return m.b(scaled[0]) + m.e(scaled[1])

    model = Own(run, eps=1e-2, d=nn.Linear(6, 8), e=nn.Linear(8, 4))

    assert changed(returned(randomised(model), noise(3, 6)))["eps"] == (1e-2, 2e-2)


def test_a_norm_of_queries_takes_the_factor_of_its_mean_and_the_scale() -> None:
    """RMSNorm right before attention with the default scale: one weight takes both."""
    model = net(
        lambda m, x: m.o(F.scaled_dot_product_attention(m.n(m.q(x)), m.k(x), m.v(x))),
        q=nn.Linear(6, 16),
        n=nn.RMSNorm(16, eps=1e-2),
        k=nn.Linear(6, 16),
        v=nn.Linear(6, 16),
        o=nn.Linear(16, 5),
    )

    assert "n.weight" in returned(model, noise(2, 5, 6)).rescaled


def test_half_precision_is_told_as_the_reason() -> None:
    """A root of 2 has no place in a weight of bfloat16; a result that is nearly right is none."""
    model = between(Spelled(lambda w: w)).to(torch.bfloat16)
    pruned = edgeprune.prune(model, (noise(3, 6).to(torch.bfloat16),))

    with pytest.raises(edgeprune.ModelNotSupported, match="prune it in float32"):
        edgeprune.to_module(pruned, model)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-2])
def test_an_eps_of_any_size_is_found_behind_values_that_look_alike(eps: float) -> None:
    """Adding 1e-6 changes no value that one could see; nor does dropout in eval mode."""
    result = returned(
        randomised(
            nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8, eps=eps), nn.Dropout(0.1), nn.Linear(8, 4))
        ),
        noise(3, 6),
    )

    assert changed(result)["1.eps"] == pytest.approx((eps, 2 * eps))
    assert result.module[2].p == 0.1
    spelled = Own(lambda m, x: m.b(rms(m.a(x), m.w, m.eps)), eps=eps, other=eps)
    assert changed(returned(randomised(spelled), noise(3, 6)))["eps"] == (eps, 2 * eps)


def test_code_that_asks_for_a_float_gets_one() -> None:
    """Attributes are plain floats whenever the user's code runs."""

    def run(m: Own, x: torch.Tensor) -> torch.Tensor:
        if type(m.eps) is not float:
            raise TypeError("not a float")
        return m.b(m.a(x).relu() * m.eps)

    assert returned(randomised(Own(run, eps=0.3)), noise(3, 6))
