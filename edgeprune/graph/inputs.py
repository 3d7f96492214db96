"""Example inputs: copies, other batch sizes, other values of the same kind.

All functions leave their argument as it is. "Batched" is a tensor whose first dim is the batch
size, which is the first dim of the first tensor with at least one dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Positional and keyword inputs of one call."""

    args: tuple[object, ...]
    kwargs: dict[str, object] = field(default_factory=dict)

    def leaves(self) -> list[object]:
        """Tensors and other values, flat, those of `args` first."""
        return pytree.tree_leaves((self.args, self.kwargs))

    @property
    def batch_size(self) -> int | None:
        """First dim of the first tensor that has one; None without such a tensor."""
        for leaf in self.leaves():
            if isinstance(leaf, torch.Tensor) and leaf.dim() > 0:
                return int(leaf.shape[0])
        return None


def is_batched(leaf: object, batch: int | None) -> bool:
    """Whether `leaf` is a tensor whose first dim is the batch."""
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def map_tensors(inputs: Inputs, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    """New inputs with `change` applied to every tensor."""
    args, kwargs = pytree.tree_map(
        lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf,
        (inputs.args, inputs.kwargs),
    )
    return Inputs(args=args, kwargs=kwargs)


def clone(inputs: Inputs) -> Inputs:
    """Copies, so that a model that writes into its input spoils nothing."""
    return map_tensors(inputs, lambda tensor: tensor.detach().clone())


def grow_batch(inputs: Inputs) -> Inputs:
    """A batch of 1 becomes 2: torch.export bakes a size of 1 into the graph."""
    return resize_batch(inputs, 2) if inputs.batch_size == 1 else inputs


def resize_batch(inputs: Inputs, size: int) -> Inputs:
    """Repeat or cut every batched tensor to `size` samples."""
    batch = inputs.batch_size
    if batch is None or batch == size or batch == 0:
        return inputs

    def resize(tensor: torch.Tensor) -> torch.Tensor:
        if not is_batched(tensor, batch):
            return tensor
        repeats = -(-size // batch)
        return torch.cat([tensor] * repeats)[:size].clone()

    return map_tensors(inputs, resize)


def vary(inputs: Inputs, seed: int) -> Inputs:
    """Other values of the same shape, dtype and range.

    Floats: a smooth ramp and noise with the example's mean and spread (spread 1 if it has none),
    so that no two positions are alike. Integers, booleans and floats of 0 and 1 (a mask): each
    sample's own rows (tokens, the four numbers of a box together) in another order, so that they
    stay what the model takes. A vector of integers that rises from 0 (where bags of words begin)
    stays, and so do ones of at most two dims beside other inputs (a mask that hides nothing).
    """
    generator = torch.Generator().manual_seed(seed)
    batch = inputs.batch_size
    several = sum(isinstance(leaf, torch.Tensor) for leaf in inputs.leaves()) > 1

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 0 or (several and tensor.dim() <= 2 and bool((tensor == 1).all())):
            return tensor
        if tensor.is_floating_point() and not _is_mask(tensor):
            return _structured(tensor, generator)
        if tensor.dim() == 1 and not tensor.is_floating_point() and _rises(tensor):
            return tensor
        samples = len(tensor) if tensor.dim() > 1 and is_batched(tensor, batch) else 1
        places = tensor.shape[int(samples > 1)] if tensor.dim() else 1
        rows = tensor.reshape(samples, places, -1)
        order = torch.rand(samples, places, 1, generator=generator).argsort(1).to(tensor.device)
        return rows.take_along_dim(order, 1).reshape(tensor.shape)

    return map_tensors(inputs, change)


def vary_but_first(inputs: Inputs, seed: int) -> Inputs:
    """`vary`, but the first sample of every batched tensor stays as it is."""
    batch = inputs.batch_size
    given = iter(inputs.leaves())

    def first(varied: object) -> object:
        own = next(given)
        if not isinstance(own, torch.Tensor) or not is_batched(own, batch):
            return varied
        return torch.cat([own[:1], cast(torch.Tensor, varied)[1:]])

    other = vary(inputs, seed)
    args, kwargs = pytree.tree_map(first, (other.args, other.kwargs))
    return Inputs(args=args, kwargs=kwargs)


def _is_mask(tensor: torch.Tensor) -> bool:
    """Whether it holds zeros and ones, and both of them."""
    zeros, ones = (tensor == 0), (tensor == 1)
    return bool((zeros | ones).all()) and bool(zeros.any()) and bool(ones.any())


def _rises(tensor: torch.Tensor) -> bool:
    """Whether integers rise from 0."""
    return (
        tensor.dtype != torch.bool
        and bool(tensor[0] == 0)
        and bool((tensor[1:] >= tensor[:-1]).all())
    )


def _structured(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    for dim, size in enumerate(tensor.shape):
        ramp = torch.linspace(-1.0, 1.0, size, dtype=torch.float64)
        phase = torch.rand(1, generator=generator, dtype=torch.float64)
        shape = [1] * tensor.dim()
        shape[dim] = size
        noise += 0.5 * torch.sin(3.0 * (ramp + phase)).reshape(shape)
    values = tensor.detach().double()
    spread = values.std().item() if tensor.numel() > 1 else 0.0
    centre = values.mean().item()
    scaled = noise.to(tensor.device) * (spread or 1.0) + centre
    if values.min() >= 0.0:
        # Images in 0-1, masks, lengths: stay on the side of zero the model expects.
        scaled = scaled.clamp_min(0.0)
    return scaled.to(tensor.dtype)
