"""Least squares from accumulated equations, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeprune.surgery.repair_layouts import Layout

# Up to so many columns their products are added up; above, rows are held, as there may be fewer
# of them than columns (a classifier behind a flattened feature map).
_SUMMED_COLUMNS = 512

# Below, the ridge is lost in the rounding of the products: a singular system stays singular.
_LEAST_RIDGE = 1e-12


class Equations:
    """The rows X, y of a least-squares problem, or X'X and X'y, added batch by batch."""

    def __init__(self, layout: Layout, weight: torch.Tensor) -> None:
        """`weight` as it is now is what the ridge pulls towards."""
        self._layout = layout
        self._start = layout.matrix(weight.detach())
        self._is_summed = self.columns <= _SUMMED_COLUMNS
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []
        # X'X, X'y, sum of X, sum of y.
        self._sums: tuple[torch.Tensor, ...] = ()
        self._count = 0

    @property
    def columns(self) -> int:
        """Unknowns of one output."""
        return self._start.shape[1]

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Rows of X (groups, rows, columns) and of y (groups, rows, outputs), float64."""
        self._count += inputs.shape[1]
        if not self._is_summed:
            self._held.append((inputs, outputs))
            return
        new = (inputs.mT @ inputs, inputs.mT @ outputs, inputs.sum(1), outputs.sum(1))
        old = self._sums
        self._sums = tuple(a + b for a, b in zip(old, new, strict=True)) if old else new

    def solve(
        self, ridges: tuple[float, ...], *, bias: bool
    ) -> tuple[tuple[torch.Tensor, torch.Tensor | None], ...]:
        """Per ridge r, the weight that minimises |y - X w - b|² + r · d · |w - w0|², and the bias.

        d is the mean diagonal of X'X (centred where there is a bias, which is free of the ridge),
        w0 the weight as it was. A group whose inputs are all zero keeps its weight. Ridge
        regression towards a prior (Hoerl and Kennard 1970, shifted).
        """
        system = self._from_sums(bias) if self._is_summed else self._from_rows(bias)
        results: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for ridge in ridges:
            solution = self._start + system.change(ridge)
            shift = None
            if bias:
                shift = system.mean_out - (system.mean_in[:, None] @ solution)[:, 0]
                shift = shift.reshape(-1)
            results.append((self._layout.weight(solution), shift))
        return tuple(results)

    def _from_sums(self, bias: bool) -> _System:
        gram, cross, inputs, outputs = self._sums
        mean_in, mean_out = inputs / self._count, outputs / self._count
        if bias:
            gram = gram - mean_in[:, :, None] * inputs[:, None]
            cross = cross - mean_in[:, :, None] * outputs[:, None]
        return _System(
            matrix=gram,
            right=cross - gram @ self._start,
            back=None,
            strength=gram.diagonal(dim1=1, dim2=2).mean(dim=1),
            mean_in=mean_in,
            mean_out=mean_out,
        )

    def _from_rows(self, bias: bool) -> _System:
        """The same from the rows themselves: the system is as large as the shorter side."""
        inputs = torch.cat([x for x, _ in self._held], dim=1)
        outputs = torch.cat([y for _, y in self._held], dim=1)
        mean_in, mean_out = inputs.mean(dim=1), outputs.mean(dim=1)
        if bias:
            inputs = inputs - mean_in[:, None]
            outputs = outputs - mean_out[:, None]
        missing = outputs - inputs @ self._start
        is_tall = self._count >= self.columns
        return _System(
            matrix=inputs.mT @ inputs if is_tall else inputs @ inputs.mT,
            right=inputs.mT @ missing if is_tall else missing,
            # (X'X + p)^-1 X' = X' (XX' + p)^-1
            back=None if is_tall else inputs.mT,
            strength=inputs.square().sum(dim=(1, 2)) / self.columns,
            mean_in=mean_in,
            mean_out=mean_out,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _System:
    """`matrix` (groups, n, n) symmetric, against `right`; `back` leads from its solution to w."""

    matrix: torch.Tensor
    right: torch.Tensor
    back: torch.Tensor | None
    strength: torch.Tensor
    mean_in: torch.Tensor
    mean_out: torch.Tensor

    def change(self, ridge: float) -> torch.Tensor:
        """w - w0 (groups, columns, outputs); of least norm where the system is singular."""
        # Where nothing comes in, any positive pull leaves the weight as it is.
        heard = self.strength > 0
        pull = torch.where(heard, ridge * self.strength, torch.ones_like(self.strength))
        system = self.matrix.clone()
        solved: torch.Tensor
        system.diagonal(dim1=1, dim2=2).add_(pull[:, None])
        factor, info = torch.linalg.cholesky_ex(system)
        if ridge < _LEAST_RIDGE or bool(info.any()):
            # Inputs may repeat each other, which rounding can hide from the factorisation.
            solved = torch.linalg.pinv(system, rtol=_LEAST_RIDGE, hermitian=True) @ self.right
        else:
            solved = torch.cholesky_solve(self.right, factor)
        return solved if self.back is None else self.back @ solved
