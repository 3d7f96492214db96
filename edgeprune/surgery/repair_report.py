"""What repair did, layer by layer and as a whole, in shares of what is to be reproduced."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRepair:
    """One reader. Errors are squared, on held-out samples, as a share of the output's variance.

    `name` is the weight's. `error_after` is what the refitted weight gives, also where that was
    not accepted and the old one stayed; both are None for a reader that cannot be refitted.
    """

    name: str
    error_before: float | None
    error_after: float | None
    accepted: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A repair as a whole. Errors are of the model's outputs against the model before removal.

    `samples` were used, a quarter of them only to judge. `kept` is False when the whole was no
    better than without repair: then every weight is what it was, and `why` says so.
    `output_error_after` is that of the model as it is left.
    """

    layers: tuple[LayerRepair, ...]
    samples: int
    output_error_before: float
    output_error_after: float
    kept: bool
    why: str


class Tally:
    """Squared error against a reference and the reference's own variation, added up."""

    def __init__(self, channel: int | None) -> None:
        """`channel` is the dim with a mean of its own; None: every position but the first dim."""
        self._channel = channel
        self._squares = 0.0
        self._wrong = 0.0
        self._count = 0
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, got: torch.Tensor, wanted: torch.Tensor) -> None:
        """Two values of one shape; what is not floating-point is counted where it differs."""
        if not wanted.is_floating_point():
            self._wrong += float((got != wanted.to(got.device)).sum())
            self._count += wanted.numel()
            return
        table = self._table(wanted)
        error = self._table(got) - table.to(got.device)
        self._squares += float(error.square().sum())
        sums = (table.sum(dim=0), table.square().sum(dim=0))
        old = self._sums
        self._sums = sums if old is None else (old[0] + sums[0], old[1] + sums[1])
        self._count += len(table)

    def _table(self, value: torch.Tensor) -> torch.Tensor:
        """(samples, positions) in float64."""
        if self._channel is None:
            return value.double().reshape(len(value), -1) if value.dim() else value.double()[None]
        moved = value.double().movedim(self._channel, -1)
        return moved.reshape(-1, moved.shape[-1])

    @property
    def error(self) -> float:
        """Share of the reference's variance; in the reference's own unit if it does not vary."""
        if self._sums is None:
            return self._wrong / max(self._count, 1)
        first, second = self._sums
        variation = float((second - first.square() / self._count).clamp_min(0).sum())
        return self._squares / variation if variation > 0 else self._squares
