"""Recurrence written out step by step, with what each weight hears masked: the eager oracle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgeprune.planning.plan import KeptAxis

Axes = Mapping[tuple[str, int], KeptAxis]
Step = tuple[torch.Tensor, torch.Tensor]

CELLS = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU", nn.RNNCell: "RNN"}


def silenced_forward(module: nn.Module, path: str, axes: Axes):
    """What `module.forward` does, each weight hearing only what the plan keeps of its input."""
    return (_Sequence if isinstance(module, nn.RNNBase) else _Single)(module, path, axes)


class _Recurrence:
    def __init__(self, module: nn.Module, path: str, axes: Axes) -> None:
        self.module, self.path, self.axes = module, path, axes
        self.kind = CELLS.get(type(module)) or module.mode.partition("_")[0]
        nonlinearity = getattr(module, "nonlinearity", "tanh")
        self.squash = torch.relu if nonlinearity == "relu" else torch.tanh

    def product(self, name: str, bias: str, value: torch.Tensor) -> torch.Tensor:
        """The masked value times a weight, plus its bias."""
        axis = self.axes.get((f"{self.path}.{name}", 1))
        if axis is not None:
            mask = torch.zeros(axis.size)
            mask[list(axis.keep)] = 1.0
            value = value * mask
        result = value @ getattr(self.module, name).T
        offset = getattr(self.module, bias, None)
        return result if offset is None else result + offset

    def step(self, suffix: str, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Step:
        """Next hidden and cell state; the formulas of torch.nn's documentation."""
        mine = self.product(f"weight_ih{suffix}", f"bias_ih{suffix}", x)
        back = self.product(f"weight_hh{suffix}", f"bias_hh{suffix}", h)
        if self.kind == "LSTM":
            i, f, g, o = (mine + back).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        if self.kind == "GRU":
            (r, z, n), (hr, hz, hn) = mine.chunk(3, -1), back.chunk(3, -1)
            keep = (z + hz).sigmoid()
            return (1 - keep) * (n + (r + hr).sigmoid() * hn).tanh() + keep * h, c
        return self.squash(mine + back), c


class _Single(_Recurrence):
    def __call__(self, x: torch.Tensor, states=None):
        zeros = torch.zeros(x.shape[0], self.module.hidden_size)
        h, c = (
            (states if self.kind == "LSTM" else (states, zeros))
            if states is not None
            else (
                zeros,
                zeros,
            )
        )
        h, c = self.step("", x, h, c)
        return (h, c) if self.kind == "LSTM" else h


class _Sequence(_Recurrence):
    def __call__(self, x: torch.Tensor, states=None):
        module = self.module
        heard = x.transpose(0, 1) if module.batch_first else x
        ways = 2 if module.bidirectional else 1
        zeros = torch.zeros(module.num_layers * ways, heard.shape[1], module.hidden_size)
        if states is None:
            states = (zeros, zeros)
        h0, c0 = (
            states
            if self.kind == "LSTM"
            else (
                states if isinstance(states, torch.Tensor) else zeros,
                zeros,
            )
        )
        finals: list[Step] = []
        for layer in range(module.num_layers):
            sides = []
            for way in range(ways):
                suffix = f"_l{layer}" + "_reverse" * way
                h, c = h0[layer * ways + way], c0[layer * ways + way]
                steps = []
                for x_t in reversed(heard.unbind(0)) if way else heard.unbind(0):
                    h, c = self.step(suffix, x_t, h, c)
                    steps.append(h)
                sides.append(torch.stack(steps[::-1] if way else steps))
                finals.append((h, c))
            heard = torch.cat(sides, -1)
        out = heard.transpose(0, 1) if module.batch_first else heard
        h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
        return (out, (h_n, c_n)) if self.kind == "LSTM" else (out, h_n)
