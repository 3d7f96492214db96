"""The task's own loss: the user's, or cross-entropy for class scores."""

from __future__ import annotations

import torch
from torch import nn

from edgeprune.errors import DataError, EdgepruneError, UserCodeError
from edgeprune.recipe.data import Loss


def task_loss(outputs: object, target: object, loss: Loss | None) -> torch.Tensor:
    """The user's loss, or cross-entropy for one tensor of class scores; a scalar."""
    if loss is not None:
        return _user_loss(outputs, target, loss)
    if not isinstance(outputs, torch.Tensor) or not isinstance(target, torch.Tensor):
        raise DataError(
            f"computing the default cross-entropy at the model's output: expected one tensor and "
            f"one target tensor, got {type(outputs).__name__} and {type(target).__name__}. "
            f"Give Data(loss=...) for this model."
        )
    try:
        return nn.functional.cross_entropy(outputs, _as_classes(target))
    except (RuntimeError, IndexError, ValueError) as error:
        raise DataError(
            f"computing the default cross-entropy at the model's output: expected class scores "
            f"(B, C) and integer targets below C, got {tuple(outputs.shape)} and "
            f"{tuple(target.shape)} {target.dtype} ({error}). Give Data(loss=...)."
        ) from error


def _as_classes(target: torch.Tensor) -> torch.Tensor:
    """Integer classes as the int64 that torch asks for; class probabilities unchanged."""
    return target if target.is_floating_point() else target.long()


def _user_loss(outputs: object, target: object, loss: Loss) -> torch.Tensor:
    name = getattr(loss, "__name__", type(loss).__name__)
    try:
        value: object = loss(outputs, target)
    except EdgepruneError:
        raise
    except Exception as error:
        raise UserCodeError(
            f"computing the loss at {name}: expected a scalar, got {type(error).__name__}: "
            f"{error}. Try the loss on one batch of the model's outputs.",
            where=name,
        ) from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserCodeError(
            f"computing the loss at {name}: expected one scalar tensor, got {got}. "
            f"Return the mean over the batch.",
            where=name,
        )
    return value.reshape(())
