"""A reader's inputs as rows of a least-squares problem, and its weight as the unknown matrix."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Protocol

import torch


class Layout(Protocol):
    """How one kind of reader is y = X · matrix (+ bias), for each of `groups` separately."""

    @property
    def groups(self) -> int:
        """Problems that share nothing."""

    @property
    def output_dim(self) -> int:
        """The dim of the output along which the matrix has its columns, from the end."""

    def rows(
        self, x: torch.Tensor, y: torch.Tensor, limit: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of X (groups, rows, columns) and of y (groups, rows, outputs), float64.

        x and y are the reader's whole input and output; about `limit` rows are drawn.
        """

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as (groups, columns, outputs), float64."""

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """The inverse of `matrix`, in its dtype."""


@dataclass(frozen=True, slots=True)
class Dense:
    """linear: weight (outputs, inputs); matmul and addmm: weight (inputs, outputs)."""

    outputs_first: bool
    groups: int = 1
    output_dim: int = -1

    def rows(
        self, x: torch.Tensor, y: torch.Tensor, limit: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (..., inputs), y (..., outputs): every leading position is a row."""
        inputs, outputs = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen = _drawn(len(inputs), limit, generator)
        return inputs[chosen].double()[None], outputs[chosen].double()[None]

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """(1, inputs, outputs)."""
        return (weight.t() if self.outputs_first else weight).double()[None]

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """As the operator has it."""
        return matrix[0].t() if self.outputs_first else matrix[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A convolution: a row is one output position of one sample, its columns input x kernel.

    `padding` counts positions before the first; what lies beyond the last is zero as well.
    Weight (outputs, inputs / groups, *kernel), transposed: (inputs, outputs / groups, *kernel).
    """

    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool

    @property
    def output_dim(self) -> int:
        """Channels come before the spatial dims."""
        return -len(self.kernel) - 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel."""
        return self.weight_shape[2:]

    def rows(
        self, x: torch.Tensor, y: torch.Tensor, limit: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (N, inputs, *spatial), y (N, outputs, *spatial), or both without N."""
        spatial = len(self.kernel)
        inputs = x.reshape(-1, x.shape[-spatial - 1], prod(x.shape[-spatial:]))
        outputs = y.reshape(len(inputs), self.groups, -1, prod(y.shape[-spatial:]))
        count, channels = inputs.shape[:2]
        chosen = _drawn(outputs.shape[-1], ceil(limit / count), generator)
        taps = self._taps(chosen, x.shape[-spatial:], y.shape[-spatial:]).to(x.device)
        # One more position, of zeros, is what a tap outside the input reads.
        padded = torch.cat([inputs, inputs.new_zeros(count, channels, 1)], dim=2)
        read = padded[:, :, taps.reshape(-1)]
        table = read.reshape(count, self.groups, -1, len(chosen), taps.shape[1])
        table = table.permute(1, 0, 3, 2, 4).double()
        wanted = outputs[..., chosen.to(y.device)].permute(1, 0, 3, 2).double()
        rows = count * len(chosen)
        return table.reshape(self.groups, rows, -1), wanted.reshape(self.groups, rows, -1)

    def _taps(
        self, chosen: torch.Tensor, source: tuple[int, ...], result: tuple[int, ...]
    ) -> torch.Tensor:
        """Flat input position that each kernel tap reads, int64 (chosen, taps); outside: size."""
        where = torch.zeros(len(chosen), 1, dtype=torch.int64)
        inside = torch.ones(len(chosen), 1, dtype=torch.bool)
        rest = chosen
        coordinates = []
        for size in reversed(result):
            coordinates.append(rest % size)
            rest = rest // size
        for dim, at in enumerate(reversed(coordinates)):
            tap = torch.arange(self.kernel[dim]) * self.dilation[dim]
            if self.transposed:
                reach = at[:, None] + self.padding[dim] - tap
                here, hits = reach // self.stride[dim], reach % self.stride[dim] == 0
            else:
                here = at[:, None] * self.stride[dim] - self.padding[dim] + tap
                hits = torch.ones_like(here, dtype=torch.bool)
            hits &= (here >= 0) & (here < source[dim])
            where = (where[:, :, None] * source[dim] + here[:, None]).flatten(1)
            inside = (inside[:, :, None] & hits[:, None]).flatten(1)
        return where.masked_fill(~inside, prod(source))

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """(groups, inputs / groups x taps, outputs / groups)."""
        first, second = self.weight_shape[:2]
        table = weight.double().reshape(self.groups, first // self.groups, second, -1)
        order = (0, 1, 3, 2) if self.transposed else (0, 2, 3, 1)
        moved = table.permute(order)
        return moved.reshape(self.groups, -1, moved.shape[-1])

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """As the operator has it."""
        first, second = self.weight_shape[:2]
        taps = prod(self.kernel)
        if self.transposed:
            table = matrix.reshape(self.groups, first // self.groups, taps, second)
            return table.permute(0, 1, 3, 2).reshape(self.weight_shape)
        table = matrix.reshape(self.groups, second, taps, first // self.groups)
        return table.permute(0, 3, 1, 2).reshape(self.weight_shape)


def _drawn(count: int, limit: int, generator: torch.Generator) -> torch.Tensor:
    """`limit` of `count` positions in order, int64; all where there are no more."""
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit].sort().values
