"""A small MobileNetV2 for 28x28 grey images: the dense network of this sample.

The design is the one of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(2018), at the size a person would choose for Fashion-MNIST: 138,000 parameters and 9.9 million
multiply-accumulates an image. The resolution is halved twice (28 -> 14 -> 7), widths grow as it
falls, and every block whose input and output agree has its shortcut.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

STEM_WIDTH = 32
HEAD_WIDTH = 192
CLASSES = 10

# (output width, stride) of each inverted residual; the hidden width is EXPANSION x input width.
BLOCKS = ((32, 1), (32, 1), (96, 2), (96, 1))
EXPANSION = 4


def conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> OrderedDict[str, nn.Module]:
    """A convolution that keeps the resolution at stride 1, then batch norm; no activation."""
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs))


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """`conv_norm` followed by ReLU6."""
    layers = conv_norm(inputs, outputs, kernel, stride=stride, groups=groups)
    layers["relu"] = nn.ReLU6()
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """Widen with a 1x1 convolution, filter each channel alone, narrow again without activation.

    x (N, inputs, H, W) -> (N, outputs, H / stride, W / stride), added to x if the shapes agree.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        hidden = EXPANSION * inputs
        self.expand = conv_norm_relu(inputs, hidden, 1)
        self.depthwise = conv_norm_relu(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = nn.Sequential(conv_norm(hidden, outputs, 1))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """x (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class SmallMobileNetV2(nn.Module):
    """Normalised images (N, 1, 28, 28) -> logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(1, STEM_WIDTH, 3, stride=2)
        width = STEM_WIDTH
        blocks = []
        for outputs, stride in BLOCKS:
            blocks.append(InvertedResidual(width, outputs, stride=stride))
            width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_norm_relu(width, HEAD_WIDTH, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(HEAD_WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 1, 28, 28) -> logits (N, 10)."""
        x = self.stem(images)  # (N, 32, 14, 14)
        x = self.blocks(x)  # (N, 96, 7, 7)
        x = self.pool(self.head(x))  # (N, 192, 1, 1)
        logits: Tensor = self.classifier(x.flatten(1))  # (N, 10)
        return logits


def build() -> nn.Module:
    """The network with fresh weights; the committed ones are in `dense.safetensors`."""
    return SmallMobileNetV2()
