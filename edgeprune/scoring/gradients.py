"""Gradients of a loss with respect to the weights of a captured model, batch by batch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping

import torch

from edgeprune.errors import DataError
from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.recipe.data import Batch, Loss
from edgeprune.recipe.feeding import call_arguments, device_of, move_target, pairs, reading
from edgeprune.recipe.task_loss import task_loss


def gradients_of(
    module: CapturedModule,
    names: tuple[str, ...],
    batches: Iterable[Batch],
    loss: Loss | None,
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Per batch, the loss's gradient for each weight of `names`, of the weight's shape.

    In eval mode, on a copy: `module` keeps its weights, gradients, flags and statistics. Weights
    with `requires_grad=False` get gradients too; one that the loss does not depend on gets zeros.
    A tied weight has one gradient, the sum over its uses. Cross-entropy where `loss` is None.
    Raises `DataError` for a batch without target, or a loss or gradient that is not finite.
    """
    model = copy.deepcopy(module).eval()
    tensors = [_weight(model, name) for name in names]
    model.requires_grad_(False)
    for tensor in tensors:
        tensor.requires_grad_(True)
    device = device_of(model)
    for index, (inputs, target) in enumerate(pairs(batches)):
        if target is None:
            raise DataError(
                f"scoring at batch {index}: expected a target, as the criterion needs the loss's "
                "gradient, got None. Give labels, or choose a criterion of the weights alone (l2)."
            )
        place = f"batch {index} of the scored samples"
        with reading(place):
            args, kwargs = call_arguments(inputs, device)
            wanted = move_target(target, device)
        with torch.enable_grad():
            value = task_loss(model(*args, **kwargs), wanted, loss, place)
            if not bool(value.isfinite()):
                raise DataError(
                    f"scoring at batch {index}: expected a finite loss, got {value.item()}. "
                    "Check the inputs and the loss."
                )
            if not value.requires_grad:
                raise DataError(
                    f"scoring at batch {index}: expected a loss that depends on the weights, got "
                    "a constant. Compute it from the model's outputs with torch."
                )
            found = torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(names, found, strict=True))
        _require_finite(gradients, index)
        yield gradients


def _require_finite(gradients: Mapping[str, torch.Tensor], index: int) -> None:
    for name, gradient in gradients.items():
        if not bool(gradient.isfinite().all()):
            raise DataError(
                f"scoring at batch {index}: expected a finite gradient of the loss, got NaN or "
                f"infinity at {name}. Look in the loss for a division, root or log at 0.",
                where=name,
            )


def _weight(model: CapturedModule, name: str) -> torch.Tensor:
    found = attribute(model, name)
    if not isinstance(found, torch.nn.Parameter):
        raise TypeError(f"{name} is no parameter")
    return found
