"""A small vision transformer for 8x8 digits, written as one would write a large one.

The design is the one of Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021): patches and a
class token with learned positions, blocks that normalise before attention and before the MLP, the
class token read at the end. Nothing in it was written with pruning in mind: the number of heads
and their width are attributes that `forward` reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGE = 8
PATCH = 2
WIDTH = 64
HEADS = 8
HIDDEN = 256
DEPTH = 2
CLASSES = 10
TOKENS = (IMAGE // PATCH) ** 2 + 1


class Attention(nn.Module):
    """Multi-head self-attention; x (N, T, WIDTH) -> (N, T, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.head_width = WIDTH // HEADS
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, T, WIDTH) -> (N, T, WIDTH)."""
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, T, head width)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out(y.transpose(1, 2).reshape(n, t, -1))
        return mixed


class Block(nn.Module):
    """Attention, then an MLP, each on normalised tokens and added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, T, WIDTH) -> (N, T, WIDTH)."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class DigitsViT(nn.Module):
    """Normalised images (N, 1, 8, 8) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.5 * torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 1, 8, 8) -> logits (N, 10)."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (N, 16, WIDTH)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.blocks(x + self.positions)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


def build() -> nn.Module:
    """The network with fresh weights; the committed ones are in `dense.safetensors`."""
    return DigitsViT()
