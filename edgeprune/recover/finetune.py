"""Fine-tune a shrunk model, with the dense one as its teacher."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, Protocol

import torch
from torch import nn

from edgeprune.errors import DataError, UsageError
from edgeprune.recipe.data import Batch, Loss, Split
from edgeprune.recipe.feeding import (
    batch_size,
    call_arguments,
    device_of,
    move_target,
    pairs,
    reading,
)
from edgeprune.recover.layout import channels_last_where_it_runs
from edgeprune.recover.objective import objective
from edgeprune.recover.schedule import rate_share, step_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train; the defaults were measured (docs/decisions, recovery).

    epochs: passes over the batches, fractions allowed, >= 0.
    learning_rate: the peak of the schedule, > 0.
    distillation: weight of the teacher, 0-1; 0 runs no teacher.
    temperature: softening of class scores, > 0.
    weight_decay: on matrices and kernels only, never on norms and biases.
    clip_norm: largest Euclidean norm of the whole gradient.
    threads: of torch while it trains, >= 1; None leaves torch's number.
    """

    epochs: float = 1.0
    learning_rate: float = 0.05
    distillation: float = 0.9
    temperature: float = 2.0
    optimizer: Literal["adamw", "sgd"] = "sgd"
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        limits = (
            ("epochs", self.epochs >= 0, "at least 0"),
            ("learning_rate", self.learning_rate > 0, "more than 0"),
            ("distillation", 0 <= self.distillation <= 1, "between 0 and 1"),
            ("temperature", self.temperature > 0, "more than 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("clip_norm", self.clip_norm > 0, "more than 0"),
            ("threads", self.threads is None or self.threads >= 1, "at least 1"),
        )
        for name, holds, wanted in limits:
            if not holds:
                raise UsageError(
                    f"reading the recovery settings at {name}: expected {wanted}, "
                    f"got {getattr(self, name)}. Mend [recover] {name}.",
                    where=name,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What training did: losses are means over the first and the last tenth of the steps."""

    epochs: float
    steps: int
    seconds: float
    first_loss: float | None
    last_loss: float | None


class StepProgress(Protocol):
    """Told after every step."""

    def step(self, done: int, total: int, text: str) -> None:
        """`done` of `total` steps; `text` says the loss."""


class _Placed(NamedTuple):
    """A batch, and its place as messages name it."""

    batch: Batch
    place: str


def finetune(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Split,
    settings: Settings,
    loss: Loss | None = None,
    progress: StepProgress | None = None,
) -> Recovery:
    """Train `student` in place for `settings.epochs` passes and leave it in eval mode.

    batches: a re-iterable of (inputs, target); batches of a single sample are passed over,
    because batch statistics of one sample are not numbers to keep. Parameters with
    `requires_grad=False` stay untouched. `loss(outputs, target)` gives a scalar tensor; without
    it, cross-entropy; batches whose target is None learn from the teacher alone. The same seed
    and batches give the same weights; the global random state is left as it was.

    Raises DataError, UserCodeError, or UsageError when the loss stops being finite.
    """
    steps = step_count(batches, settings.epochs)
    if settings.epochs > 0 and steps == 0:
        raise DataError(
            "fine-tuning at the training split: expected at least one batch, got none. "
            "Give [data] a training split, or set epochs = 0 in [recover]."
        )
    start = time.perf_counter()
    guide = teacher if settings.distillation > 0 else None
    with torch.random.fork_rng(), _threads(settings.threads):
        torch.manual_seed(settings.seed)
        losses = _train_(student, guide, batches, settings, steps, loss, progress)
    tenth = max(1, steps // 10)
    return Recovery(
        epochs=settings.epochs,
        steps=steps,
        seconds=time.perf_counter() - start,
        first_loss=_mean(losses[:tenth]),
        last_loss=_mean(losses[-tenth:]),
    )


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of torch inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Split,
    settings: Settings,
    steps: int,
    loss: Loss | None,
    progress: StepProgress | None,
) -> list[float]:
    """Change the student's weights; the loss of every step."""
    if steps == 0 or not any(p.requires_grad for p in student.parameters()):
        student.eval()
        return []
    models = (student,) if teacher is None else (student, teacher)
    stream = _endless(batches, steps)
    first = next(stream)
    with reading(first.place):
        example = call_arguments(first.batch[0], device_of(student))
    with channels_last_where_it_runs(models, *example):
        student.train()
        if teacher is not None:
            teacher.eval()
        try:
            return _steps_(
                student, teacher, chain((first,), stream), settings, steps, loss, progress
            )
        finally:
            student.eval()
            student.zero_grad(set_to_none=True)


def _steps_(
    student: nn.Module,
    teacher: nn.Module | None,
    stream: Iterator[_Placed],
    settings: Settings,
    steps: int,
    loss: Loss | None,
    progress: StepProgress | None,
) -> list[float]:
    """One optimiser over all steps; a number that is not finite never reaches the weights."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, settings)
    losses: list[float] = []
    for step, placed in enumerate(stream):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_share(step, steps)
        optimizer.zero_grad(set_to_none=True)
        value = _loss_of(student, teacher, placed, settings, loss)
        losses.append(_finite(value, "loss", step, steps))
        value.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        _finite(norm, "gradient", step, steps)
        optimizer.step()
        if progress is not None:
            progress.step(step + 1, steps, f"loss {losses[-1]:.3f}")
    return losses


def _loss_of(
    student: nn.Module,
    teacher: nn.Module | None,
    placed: _Placed,
    settings: Settings,
    loss: Loss | None,
) -> torch.Tensor:
    inputs, target = placed.batch
    if target is None and teacher is None:
        raise DataError(
            f"fine-tuning at {placed.place}: expected a label or a teacher, got neither. "
            f"Set distillation above 0 in [recover], or epochs = 0.",
            where=placed.place,
        )
    device = device_of(student)
    with reading(placed.place):
        args, kwargs = call_arguments(inputs, device)
        wanted = move_target(target, device)
    guidance: object | None = None
    if teacher is not None:
        with torch.no_grad():
            guidance = teacher(*args, **kwargs)
    return objective(
        student(*args, **kwargs),
        guidance,
        wanted,
        loss=loss,
        distillation=settings.distillation,
        temperature=settings.temperature,
        place=placed.place,
    )


def _optimizer(parameters: list[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Weight decay on tensors of two or more dims; norms and biases, of one dim, go without."""
    groups = [
        {
            "params": [p for p in parameters if p.dim() > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)


def _endless(batches: Split, steps: int) -> Iterator[_Placed]:
    """Exactly `steps` batches of two samples or more, starting over as often as needed."""
    given = 0
    while True:
        before = given
        for index, batch in enumerate(pairs(batches)):
            place = f"the train split, batch {index}"
            with reading(place):
                size = batch_size(batch[0])
            if size < 2:
                continue
            yield _Placed(batch, place)
            given += 1
            if given == steps:
                return
        if given == before:
            raise DataError(
                "fine-tuning at the training split: expected batches of at least 2 samples on "
                "every pass, got none. Yield larger batches from a split that can be read again."
            )


def _finite(value: torch.Tensor, name: str, step: int, steps: int) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise UsageError(
            f"fine-tuning at step {step + 1} of {steps}: expected a finite {name}, got {number}. "
            f"Lower learning_rate in [recover]."
        )
    return number


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
