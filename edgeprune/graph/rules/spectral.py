"""Fourier transforms: along some axes, position by position of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeprune.graph.labels import Value
from edgeprune.graph.registry import rule
from edgeprune.graph.rules.reduction import dims_of
from edgeprune.graph.rules.window import channels_beside
from edgeprune.graph.trace import Trace

aten = torch.ops.aten

_ONE = (
    aten.fft_fft.default,
    aten.fft_ifft.default,
    aten.fft_rfft.default,
    aten.fft_irfft.default,
    aten.fft_hfft.default,
    aten.fft_ihfft.default,
)
_SEVERAL = (
    aten.fft_fft2.default,
    aten.fft_ifft2.default,
    aten.fft_rfft2.default,
    aten.fft_irfft2.default,
    aten.fft_fftn.default,
    aten.fft_ifftn.default,
    aten.fft_rfftn.default,
    aten.fft_irfftn.default,
)


@rule(*_ONE)
def transform(
    t: Trace, x: Value, n: int | None = None, dim: int = -1, norm: str | None = None
) -> Value:
    """Frequencies take the place of positions along `dim`; every channel has its own spectrum.

    x (2, 8, 16), rfft over dim 2 -> (2, 8, 9): channel 3 stays channel 3.
    """
    return _transformed(t, x, (dim % len(x.shape),))


@rule(*_SEVERAL)
def transforms(
    t: Trace,
    x: Value,
    s: Sequence[int] | None = None,
    dim: Sequence[int] | None = None,
    norm: str | None = None,
) -> Value:
    """`transform` over several axes: those of `dim`, else the last ones of `s`, else all.

    x (2, 8, 7, 7), rfft2 -> (2, 8, 7, 4). The two-dimensional ones have (-2, -1) for `dim`.
    """
    rank = len(x.shape)
    if dim is None and t.target._schema.name.endswith("2"):
        dim = (-2, -1)
    if dim is None and s is not None:
        dim = range(rank - len(s), rank)
    return _transformed(t, x, dims_of(dim, rank))


@rule(aten.fft_fftshift.default, aten.fft_ifftshift.default)
def shift(t: Trace, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    """The halves of each axis of `dim` (all by default) change places; the other axes pass.

    x (2, 8, 7, 7), dim (2, 3): channel 3 stays channel 3.
    """
    return _transformed(t, x, dims_of(dim, len(x.shape)))


def _transformed(t: Trace, x: Value, dims: tuple[int, ...]) -> Value:
    """Each frequency hears every position along `dims`: these stay, the other axes pass."""
    return Value(t.shape, channels_beside(t, x, dims, "a Fourier transform is taken over it"))
