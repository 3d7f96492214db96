"""What torchvision's models take: names, input shapes, random weights without warnings."""

from __future__ import annotations

import difflib
import inspect

import torch
import torchvision
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.recipe.inputs import InputSpec

# Families by the module they live in; a classifier of 224 x 224 is the rest.
_SHAPES = {
    "torchvision.models.segmentation": (2, 3, 128, 128),
    "torchvision.models.video.mvit": (2, 3, 16, 224, 224),
    "torchvision.models.video.": (2, 3, 16, 112, 112),
}
_SHAPE_OF = {"inception_v3": (2, 3, 299, 299)}
_REFUSED = {
    "torchvision.models.detection": "takes a list of images",
    "torchvision.models.optical_flow": "is not a plain feed-forward model",
    "torchvision.models.quantization": "is quantized already",
}
# These draw their weights slowly, and warn, unless told how.
_INIT_WEIGHTS = ("googlenet", "inception_v3")


def torchvision_model(name: str, seed: int = 0) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    """A torchvision model with seeded random weights, and the inputs it knows.

    The global random state is left as it was. Raises UsageError for a name that is not there or
    a model whose input is not a batch of tensors.
    """
    known = torchvision.models.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See torchvision.models."
        raise UsageError(
            f"loading the model at torchvision:{name}: expected a model of torchvision "
            f"{torchvision.__version__}, got {name!r}. {hint}",
            where=name,
        )
    builder = torchvision.models.get_model_builder(name)
    for place, reason in _REFUSED.items():
        if builder.__module__.startswith(place):
            raise UsageError(
                f"loading the model at torchvision:{name}: expected a model of one batch of "
                f"images, got one that {reason}. Wrap it in a factory of your own.",
                where=name,
            )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options: dict[str, bool | None] = {"weights": None}
        if "weights_backbone" in inspect.signature(builder).parameters:
            options["weights_backbone"] = None
        if name in _INIT_WEIGHTS:
            options["init_weights"] = True
        model: nn.Module = builder(**options)
        fill_zero_weights_(model)
    return model, (InputSpec(shape=_shape_of(name, builder.__module__)),)


def fill_zero_weights_(model: nn.Module) -> None:
    """Give matrices that start as zeros (a ViT's head) random values, in place.

    The output of such a model does not depend on its input: 0 = 0 would pass every comparison.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def _shape_of(name: str, module: str) -> tuple[int, ...]:
    if name in _SHAPE_OF:
        return _SHAPE_OF[name]
    shapes = (shape for place, shape in _SHAPES.items() if module.startswith(place))
    return next(shapes, (2, 3, 224, 224))
