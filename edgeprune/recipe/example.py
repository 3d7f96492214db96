"""Example tensors made from a description of their shape: seeded, and never constant."""

from __future__ import annotations

import torch

from edgeprune.recipe.inputs import InputSpec

_DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
_LARGEST_INTEGER = 9
"""Small enough to index any embedding of at least ten rows."""


def example_inputs(specs: tuple[InputSpec, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """One tensor a spec: normal values for floats, 0-9 for integers, both truths for bool.

    The same seed gives the same tensors; the global random state is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_example(spec, generator) for spec in specs)


def _example(spec: InputSpec, generator: torch.Generator) -> torch.Tensor:
    dtype = _DTYPES[spec.dtype]
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    high = 2 if dtype == torch.bool else _LARGEST_INTEGER + 1
    return torch.randint(0, high, spec.shape, generator=generator).to(dtype)
