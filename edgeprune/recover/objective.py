"""What fine-tuning minimises: the task's loss, and the distance to the dense teacher.

Distillation of class scores is the method of Hinton, Vinyals and Dean, "Distilling the Knowledge
in a Neural Network" (2015): the Kullback-Leibler divergence between softened distributions, times
the squared temperature so that its gradient keeps its size. Anything that is not one row of class
scores a sample (tuples, dicts, maps, regressions) is matched value by value instead.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.errors import DataError
from edgeprune.recipe.data import Loss
from edgeprune.recipe.task_loss import task_loss


def softened_divergence(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch.

    student, teacher (B, C) unnormalised class scores, any float dtype -> scalar.
    """
    log_student = nn.functional.log_softmax(student / temperature, dim=1)
    log_teacher = nn.functional.log_softmax(teacher / temperature, dim=1)
    divergence = nn.functional.kl_div(
        log_student, log_teacher, reduction="batchmean", log_target=True
    )
    return divergence * temperature**2


def matching_error(student: object, teacher: object) -> torch.Tensor:
    """Mean squared error over max(1, the teacher's variance), mean over the floating outputs.

    The division makes outputs of different scale weigh the same, and puts the value on the scale
    of 1, where the distillation weight means what it means for class scores. It never magnifies:
    an output that hardly varies would get a gradient that no step size of the rest survives
    (a regression with such an output beside it fell from an error of 0.07 to 0.48 in training).
    """
    ours, theirs = floating_outputs(student), floating_outputs(teacher)
    if not theirs or [a.shape for a in ours] != [b.shape for b in theirs]:
        raise DataError(
            f"distilling at the model's outputs: expected the teacher's floating outputs "
            f"{[tuple(b.shape) for b in theirs]}, got {[tuple(a.shape) for a in ours]}. "
            f"Set distillation = 0 in [recover]."
        )
    errors = []
    for a, b in zip(ours, theirs, strict=True):
        variance = b.var(correction=0)
        scale = variance.clamp_min(1.0)
        errors.append((a - b).square().mean() / scale)
    return torch.stack(errors).mean()


def floating_outputs(outputs: object) -> list[torch.Tensor]:
    """The floating tensors of a nested output, in a fixed order; indices and Nones left out."""
    leaves = pytree.tree_leaves(outputs)
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]


def gives_class_scores(
    outputs: object, target: object, loss: Loss | None
) -> TypeGuard[torch.Tensor]:
    """Whether outputs are one row of at least two class scores a sample.

    With a loss of the user's own, a floating target says regression.
    """
    if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2 or outputs.shape[1] < 2:
        return False
    return loss is None or not (isinstance(target, torch.Tensor) and target.is_floating_point())


def objective(
    outputs: object,
    teacher_outputs: object | None,
    target: object,
    *,
    loss: Loss | None,
    distillation: float,
    temperature: float,
    place: str | None = None,
) -> torch.Tensor:
    """(1 - a) · task loss + a · distillation; one of them alone where the other has no input.

    Without a target (None) only the distillation counts, without a teacher only the task.
    place: which batch it is, for the messages.
    """
    if teacher_outputs is None:
        return task_loss(outputs, target, loss, place)
    distance = distance_to_teacher(outputs, teacher_outputs, target, loss, temperature)
    if target is None:
        return distance
    task = task_loss(outputs, target, loss, place)
    return (1 - distillation) * task + distillation * distance


def distance_to_teacher(
    outputs: object,
    teacher_outputs: object,
    target: object,
    loss: Loss | None,
    temperature: float,
) -> torch.Tensor:
    """The softened divergence of class scores, the matching error of anything else."""
    if isinstance(teacher_outputs, torch.Tensor) and gives_class_scores(outputs, target, loss):
        return softened_divergence(outputs, teacher_outputs, temperature)
    return matching_error(outputs, teacher_outputs)
