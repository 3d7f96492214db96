"""Families of ATen overloads that several rooms must tell apart."""

from __future__ import annotations

import torch
from torch import fx

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
# (input, states, parameters, has_biases, layers, dropout, train, bidirectional, batch_first)
# States are one tensor, of lstm a list of two; parameters of a layer and direction are weight_ih,
# weight_hh, and with biases bias_ih, bias_hh. The number is that of gates: rows of a weight for
# each hidden unit.
RECURRENT = {
    aten.lstm.input: 4,
    aten.gru.input: 3,
    aten.rnn_tanh.input: 1,
    aten.rnn_relu.input: 1,
}
# One step of the same: (input, states, weight_ih, weight_hh, bias_ih, bias_hh).
CELLS = {
    aten.lstm_cell.default: 4,
    aten.gru_cell.default: 3,
    aten.rnn_tanh_cell.default: 1,
    aten.rnn_relu_cell.default: 1,
}


def cell_parameters(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes of the weights and biases of a recurrent operator; of any other, none."""
    if node.target in RECURRENT:
        written = node.args[2]
    elif node.target in CELLS:
        written = node.args[2:]
    else:
        return ()
    members = written if isinstance(written, list | tuple) else ()
    return tuple(member for member in members if isinstance(member, fx.Node))
