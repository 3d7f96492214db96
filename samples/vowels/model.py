"""A small residual network of 1-D convolutions for 12 cepstral coefficients over 29 steps.

The residual block is the one of He et al., "Deep Residual Learning for Image Recognition" (2016),
along time. The second block halves the steps and widens, so its shortcut is a 1x1 convolution.
"""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = 12
WIDTH = 48
WIDE = 64
SPEAKERS = 9


def conv_norm(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """A convolution along time that keeps the steps at stride 1, then batch norm."""
    conv = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(outputs))


class Residual(nn.Module):
    """Two convolutions beside a shortcut; x (N, inputs, T) -> (N, outputs, T / stride)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride=stride)
        self.second = conv_norm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x (N, inputs, T) -> (N, outputs, T / stride)."""
        y = self.second(self.relu(self.first(x)))
        output: Tensor = self.relu(y + self.shortcut(x))
        return output


class VowelNet(nn.Module):
    """Normalised utterances (N, 12, 29) -> logits (N, 9)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(CHANNELS, WIDTH, 5), nn.ReLU())
        self.blocks = nn.Sequential(Residual(WIDTH, WIDTH), Residual(WIDTH, WIDE, stride=2))
        self.classifier = nn.Linear(WIDE, SPEAKERS)

    def forward(self, series: Tensor) -> Tensor:
        """series (N, 12, 29) -> logits (N, 9)."""
        x = self.blocks(self.stem(series))  # (N, 64, 15)
        logits: Tensor = self.classifier(x.mean(2))  # (N, 9)
        return logits


def build() -> nn.Module:
    """The network with fresh weights; the committed ones are in `dense.safetensors`."""
    return VowelNet()
