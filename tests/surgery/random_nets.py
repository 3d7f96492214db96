"""A strategy that draws small nets: a chain of steps over one value, by seed and by name.

A net is described by its list of steps, so a failing example can be read and built again:
`build((("conv", 6), ("flip", 0), ("branch", 4)))`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from small_nets import conv, randomised
from torch import nn

Step = tuple[str, int]

SIZE = 4  # height and width of every feature map
HEADS = 2


class Chain(nn.Module):
    """Steps one after the other over (B, C, 4, 4), then a head of 3 outputs."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleDict()
        width = 3
        for index, (kind, number) in enumerate(steps):
            layer, width = _layer(kind, number, width)
            self.layers[f"{kind}{index}"] = layer
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return self.head(torch.tanh(x).mean((2, 3)) + x[:, :, 0, 0])


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Branch(nn.Module):
    """x + f(x), the branch of its own hidden width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = conv(width, hidden, 1), conv(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(F.silu(self.down(x)))


class Dense(nn.Module):
    """cat([f(x), x])."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.more = conv(width, growth, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.more(x), x], 1)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.excite(F.silu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class Tokens(nn.Module):
    """Pixels as tokens: a layer norm, then attention with two heads, added to x."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), inner
        self.qkv, self.out = nn.Linear(width, 3 * inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x.flatten(2).transpose(1, 2))
        shape = (-1, SIZE * SIZE, 3, HEADS, self.inner // HEADS)
        q, k, v = self.qkv(y).reshape(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(y).transpose(1, 2).unflatten(2, (SIZE, SIZE))


def _halves(x: torch.Tensor) -> torch.Tensor:
    one, two = x.tensor_split(2, 1)
    return torch.cat([two * 2, torch.tanh(one)], 1)


def _write(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y[:, : x.shape[1] // 2].mul_(0.5).add_(1)
    return y


def _shuffle(x: torch.Tensor) -> torch.Tensor:
    if x.shape[1] % 2:
        return x.flip(1)
    pairs = x.view(-1, 2, x.shape[1] // 2, SIZE, SIZE).transpose(1, 2)
    return pairs.reshape(-1, x.shape[1], SIZE, SIZE)


def _layer(kind: str, number: int, width: int) -> tuple[nn.Module, int]:
    """The layer of a step on `width` channels, and the width behind it."""
    match kind:
        case "conv":
            return conv(width, number), number
        case "conv in groups":
            inner = conv(width, 2 * number), conv(2 * number, 2 * number, groups=2)
            return nn.Sequential(*inner), 2 * number
        case "depthwise":
            return conv(width, width, groups=width), width
        case "upside down":
            return nn.ConvTranspose2d(width, number, 1), number
        case "batch norm":
            return nn.Sequential(nn.BatchNorm2d(width), nn.LeakyReLU(0.1)), width
        case "branch":
            return Branch(width, number), width
        case "dense":
            return Dense(width, number), width + number
        case "gate":
            return Gate(width, number), width
        case "tokens":
            return Tokens(width, 2 * number), width
        case "pad":
            return Apply(lambda x: F.pad(x, (0, 0, 0, 0, 1, number % 3))), width + 1 + number % 3
        case _:
            return Apply(_MOVES[kind](number)), width


# Ops without weights that keep the width, by a number that each reads in its own way.
_MOVES = {
    "flip": lambda n: lambda x: x.flip(1) + 0.5 * x if n % 2 else x.flip(1),
    "roll": lambda n: lambda x: x.roll((n, 1), (1, 2)),
    "halves": lambda n: _halves,
    "write": lambda n: _write,
    "shuffle": lambda n: _shuffle,
    "scale": lambda n: lambda x: x * x.shape[1] ** -0.5 - x.sum(1, keepdim=True) * 0.1,
    "mean": lambda n: lambda x: x - x.mean((1, 2, 3) if n % 2 else 1, keepdim=True),
    "stack": lambda n: lambda x: torch.stack([x, x.flip(1)], 2).amax(2),
}

KINDS = (
    *("conv", "conv in groups", "depthwise", "upside down", "batch norm", "branch", "dense"),
    *("gate", "tokens", "pad"),
    *_MOVES,
)

steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(min_value=2, max_value=5)),
    min_size=2,
    max_size=7,
).map(lambda drawn: (("conv", 6), *drawn))


def build(drawn: tuple[Step, ...]) -> Chain:
    """The net of a list of steps, with random weights, in eval mode."""
    return randomised(Chain(drawn)).eval()
