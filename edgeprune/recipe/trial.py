"""One run of the user's model on its example, before anything is built on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.errors import UsageError, UserCodeError
from edgeprune.recipe.factory import last_line


@contextlib.contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass does to buffers: counters, and caches that it puts in place."""
    held = [(module, dict(module._buffers)) for module in model.modules()]
    values = [
        (buffer, buffer.detach().clone())
        for _, buffers in held
        for buffer in buffers.values()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, buffers in held:
            for name in [name for name in module._buffers if name not in buffers]:
                delattr(module, name)
            # Another tensor of another size may stand there now: the old one comes back.
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def try_model(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], name: str
) -> None:
    """Run `model` (in eval mode, not changed) once on copies of its example inputs.

    Raises UserCodeError when it raises, naming the user's line and the shapes it was given, and
    UsageError when it gives no tensor, or NaN for finite inputs.
    """
    positional, keywords = pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach().clone(), (args, dict(kwargs))
    )
    try:
        with same_buffers(model), torch.no_grad():
            outputs = model(*positional, **keywords)
    except Exception as error:  # whatever the user's forward raises
        place = last_line(error) or name
        raise UserCodeError(
            f"running the model at {place}: expected {name} to take {_spelled(args, kwargs)}, got "
            f"{type(error).__name__}: {error}. Give the shapes it takes: --input, [model] input, "
            f"or the factory's example.",
            where=place,
        ) from error
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise UserCodeError(
            f"running the model at {name}: expected a tensor, or tensors in a tuple or dict, got "
            f"{type(outputs).__name__}. Return these from forward().",
            where=name,
        )
    if any(tensor.is_floating_point() and tensor.isnan().any() for tensor in tensors):
        raise UsageError(
            f"running the model at {name}: expected numbers for its example input, got NaN. "
            f"Check the weights, and the example's range.",
            where=name,
        )


def _spelled(args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    """`2x3x8x8, scale 2x1:int64`: what was given, by position or name."""
    given = [_one(value) for value in args]
    given += [f"{name} {_one(value)}" for name, value in kwargs.items()]
    return ", ".join(given) or "no inputs"


def _one(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    dtype = str(value.dtype).removeprefix("torch.")
    shape = "x".join(str(size) for size in value.shape) or "a scalar"
    return shape if dtype == "float32" else f"{shape}:{dtype}"
