"""The task's own loss: the user's, or cross-entropy for class scores."""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.errors import DataError, EdgepruneError, UserCodeError
from edgeprune.recipe.data import Loss


def task_loss(
    outputs: object, target: object, loss: Loss | None, place: str | None = None
) -> torch.Tensor:
    """The user's loss, or cross-entropy for one tensor of class scores; a scalar.

    place: `the train split, batch 3`, for the messages. Raises DataError for targets that do not
    fit the outputs, UserCodeError when the user's loss raises or gives no scalar.
    """
    if loss is not None:
        return _user_loss(outputs, target, loss, place)
    where = place or "the model's output"
    if not isinstance(outputs, torch.Tensor) or not isinstance(target, torch.Tensor):
        raise DataError(
            f"computing the default cross-entropy at {where}: expected one tensor and "
            f"one target tensor, got {type(outputs).__name__} and {type(target).__name__}. "
            f"Give Data(loss=...) for this model.",
            where=place,
        )
    try:
        return nn.functional.cross_entropy(outputs, _as_classes(target))
    except (RuntimeError, IndexError, ValueError) as error:
        raise DataError(
            f"computing the default cross-entropy at {where}: expected class scores (B, C) and "
            f"integer targets below C (B,), got scores {tuple(outputs.shape)} and "
            f"{_spelled(target)} ({str(error).rstrip('.')}). Mend the labels; where they are meant "
            f"so, give Data(loss=...).",
            where=place,
        ) from error


def _as_classes(target: torch.Tensor) -> torch.Tensor:
    """Integer classes as the int64 that torch asks for; class probabilities unchanged."""
    return target if target.is_floating_point() else target.long()


def _spelled(target: torch.Tensor) -> str:
    """`targets (8,) int64 from 0 to 9`."""
    dtype = str(target.dtype).removeprefix("torch.")
    text = f"targets {tuple(target.shape)} {dtype}"
    if target.numel() == 0 or target.is_complex():
        return text
    return f"{text} from {target.min().item()} to {target.max().item()}"


def _user_loss(outputs: object, target: object, loss: Loss, place: str | None) -> torch.Tensor:
    name = getattr(loss, "__name__", type(loss).__name__)
    where = name if place is None else f"{name}, {place}"
    try:
        value: object = loss(outputs, target)
    except EdgepruneError:
        raise
    except Exception as error:
        raise UserCodeError(
            f"computing the loss at {where}: expected a scalar, got {type(error).__name__}: "
            f"{str(error).rstrip('.')}. Mend the labels, or the loss: try it on that batch.",
            where=name,
        ) from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserCodeError(
            f"computing the loss at {where}: expected one scalar tensor, got {got}. "
            f"Return the mean over the batch.",
            where=name,
        )
    return value.reshape(())
