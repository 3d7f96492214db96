"""Sums over a weight along each dim that groups have units in, all from one reading of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

# Numbers in float64 that stay in the cache: 256 KiB.
_BLOCK = 2**15

Elementwise: TypeAlias = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """A weight, with the gradient of one batch's loss if there is one, and what was summed of it.

    `dims`: those that units lie in, of this group or of another. A weight is read once for all of
    them: the rows of a layer belong to one group, its columns to another, and it may not fit the
    cache.
    """

    weight: torch.Tensor
    dims: tuple[int, ...]
    gradient: torch.Tensor | None = None
    _known: dict[tuple[Elementwise, bool], dict[int, NDArray[np.float64]]] = field(
        default_factory=dict
    )

    def along(self, dim: int, function: Elementwise, *, gradient: bool) -> NDArray[np.float64]:
        """Sum of `function(weight)`, or of `function(weight, gradient)`, at each position of `dim`.

        float64 of the dim's size. The function works element by element, in float64.
        """
        key = function, gradient
        if key not in self._known:
            self._known[key] = self._read(function, gradient)
        return self._known[key][dim]

    def _read(self, function: Elementwise, gradient: bool) -> dict[int, NDArray[np.float64]]:
        """A block of rows at a time: the whole in float64 would take longer than the sums."""
        second = self.gradient if gradient else None
        tensors = [t.detach() for t in (self.weight, second) if t is not None]
        shape = self.weight.shape
        others = {dim: [d for d in range(len(shape)) if d != dim] for dim in self.dims}
        found = {dim: torch.zeros(shape[dim], dtype=torch.float64) for dim in self.dims}
        rows = max(1, _BLOCK // max(shape[1:].numel(), 1))
        for start in range(0, shape[0], rows):
            block = function(*(tensor[start : start + rows].double() for tensor in tensors))
            for dim, total in found.items():
                part = (block.sum(dim=others[dim]) if others[dim] else block).cpu()
                if dim == 0:
                    total[start : start + rows] = part
                else:
                    total += part
        return {dim: total.numpy() for dim, total in found.items()}
