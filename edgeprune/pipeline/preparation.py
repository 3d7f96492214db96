"""What a run starts from: the recipe's model, data and target, loaded and checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from edgeprune.errors import DataError, UsageError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.graph.inputs import Inputs
from edgeprune.measure.here import why_not_here
from edgeprune.measure.settings import Settings, settings_for
from edgeprune.pipeline.progress import Progress
from edgeprune.pipeline.seeding import seeded
from edgeprune.recipe.data import Data, Split, load_data
from edgeprune.recipe.evaluate import evaluate
from edgeprune.recipe.feeding import (
    call_arguments,
    device_of,
    first_batch,
    move_target,
    reading,
)
from edgeprune.recipe.fit import require_fit
from edgeprune.recipe.model import load_model
from edgeprune.recipe.schema import Recipe, recipe_hash
from edgeprune.recipe.task_loss import task_loss
from edgeprune.recover.layout import channels_last_where_it_runs
from edgeprune.scoring.criteria import find_criterion
from edgeprune.targets import Target, load_target, override


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A recipe with everything it names loaded.

    `recipe_sha256` is the hash of the recipe and its files before they were read. `dense` is the
    analysis of the model as it came, `dense_accuracy` its metric on validation, None without
    labels.
    """

    recipe: Recipe
    recipe_sha256: str
    target: Target
    measuring: Settings
    model_name: str
    data: Data
    dense: Analysis
    dense_accuracy: float | None

    @property
    def multiple(self) -> int:
        """Widths are kept at multiples of this many positions."""
        return self.recipe.prune.multiple or self.target.pruning.channel_multiple

    @property
    def metric_word(self) -> str:
        """What the figure on validation is called: accuracy, or metric for one of the user's."""
        return "accuracy" if self.data.metric is None else "metric"

    @property
    def splits(self) -> tuple[Split, ...]:
        """What a step may read; the test split is not among them."""
        data = self.data
        return tuple(s for s in (data.train, data.validation, data.calibration) if s is not None)

    @property
    def seed(self) -> int:
        """The run's seed; each round trains with this plus its number."""
        return self.recipe.prune.seed


def chosen_target(recipe: Recipe, name: str | None) -> Target:
    """The target by name (default: the recipe's), with the recipe's threads and batch.

    A name that ends in `.toml` and comes from the recipe is relative to the recipe.
    """
    wanted = recipe.target.name if name is None else name
    is_file = name is None and wanted.endswith(".toml")
    target = load_target(recipe.base_dir / wanted if is_file else wanted)
    return override(target, threads=recipe.target.threads, batch=recipe.target.batch)


def can_measure(target: Target) -> bool:
    """Whether a clock on this machine says something about the target."""
    return why_not_here(target) is None


def prepare(recipe: Recipe, target: Target, measuring: Settings | None, progress: Progress) -> Job:
    """Load model, weights and data, capture and analyze, and judge the dense model on validation.

    Raises what the stages raise: RecipeError, DataError, UserCodeError, ModelNotSupported.
    """
    _require_opset(recipe, target)
    find_criterion(recipe.prune.criterion)  # a wrong name is known before any work
    progress.stage("load model and data")
    read = recipe_hash(recipe)
    loaded = load_model(
        recipe.model.factory,
        weights=recipe.model.weights,
        input=recipe.model.input,
        base_dir=recipe.base_dir,
        seed=recipe.prune.seed,
    )
    data = load_data(recipe.data.factory, recipe.base_dir)
    progress.stage("analyze")
    dense = analyze(loaded.module, loaded.args, loaded.kwargs, exact_only=recipe.prune.exact_only)
    for loss in dense.captured.lost:
        progress.note(f"not in the captured model: {loss}")
    captured = dense.captured
    fixed_batch = None if captured.dynamic_batch else captured.inputs.batch_size
    require_fit(data, captured.args, captured.kwargs, fixed_batch=fixed_batch)
    accuracy = validation_accuracy(captured.module, captured.inputs, data, usable="validation")
    with seeded(recipe.prune.seed):
        require_loss(recipe, data, captured.module)
    job = Job(
        recipe=recipe,
        recipe_sha256=read,
        target=target,
        measuring=measuring or settings_for(target),
        model_name=loaded.name,
        data=data,
        dense=dense,
        dense_accuracy=accuracy,
    )
    figure = f"{job.metric_word} {shown(accuracy)} on validation"
    progress.note(f"dense: {figure}, {len(dense.groups)} groups")
    return job


def require_loss(recipe: Recipe, data: Data, module: nn.Module) -> None:
    """One training batch through the loss: a mistake in it shows before anything is pruned.

    Nothing is read where neither training nor the criterion has a use for labels. Raises DataError
    for labels that do not fit or a split that yields nothing, UserCodeError from the loss.
    """
    recover = recipe.recover
    trains = recover.epochs > 0 or recover.final_epochs > 0
    if not trains and not find_criterion(recipe.prune.criterion).gradients:
        return
    inputs, target = first_batch("train", data.train)
    if target is None:
        return
    place, device = "the train split, batch 0", device_of(module)
    with reading(place):
        args, kwargs = call_arguments(inputs, device)
        wanted = move_target(target, device)
    with torch.no_grad():
        value = task_loss(module.eval()(*args, **kwargs), wanted, data.loss, place)
    if not bool(value.isfinite()):
        raise DataError(
            f"trying the loss at {place}: expected a finite number for the dense model, got "
            f"{float(value)}. Mend the labels, or Data(loss=...).",
            where="train",
        )


def validation_accuracy(
    module: nn.Module, example: Inputs, data: Data, *, usable: str | None = None
) -> float | None:
    """The metric of a model on the validation split; None without labels.

    It may be NaN or infinite unless `usable` names the split: see `evaluate`.
    """
    with channels_last_where_it_runs((module,), example.args, example.kwargs):
        return evaluate(module, data.validation, data.metric, usable=usable).value


def shown(accuracy: float | None) -> str:
    """0.91234 -> '0.9123', None -> 'unknown (no labels)'."""
    return "unknown (no labels)" if accuracy is None else f"{accuracy:.4f}"


def _require_opset(recipe: Recipe, target: Target) -> None:
    most = target.runtime.max_opset
    if most is not None and recipe.export.opset > most:
        raise UsageError(
            f"preparing the export at export.opset: expected at most {most}, which is what target "
            f"'{target.name}' reads, got {recipe.export.opset}. Set opset = {most} in [export].",
            where="export.opset",
        )
