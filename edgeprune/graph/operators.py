"""Families of ATen overloads that several rooms must tell apart."""

from __future__ import annotations

import torch

aten = torch.ops.aten

# (input, weight, bias, stride, padding, dilation, groups); `padding` is "same" or "valid".
CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
)
# (input, weight, bias, stride, padding, output_padding, groups, dilation)
TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
