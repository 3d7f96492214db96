"""What timm's models take: names, input shapes, random weights."""

from __future__ import annotations

import difflib

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.recipe.inputs import InputSpec
from edgeprune.recipe.zoo import fill_zero_weights_


def timm_model(name: str, seed: int = 0) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    """A timm model with seeded random weights (nothing is downloaded), and the input it knows.

    The global random state is left as it was. Raises UsageError for a name that is not there.
    """
    known = timm.list_models()
    architecture = name.partition(".")[0]
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See timm.list_models()."
        raise UsageError(
            f"loading the model at timm:{name}: expected a model of timm {timm.__version__}, got "
            f"{name!r}. {hint}",
            where=name,
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(name, pretrained=False)
        fill_zero_weights_(model)
    channels, height, width = _input_size(model)
    return model, (InputSpec(shape=(2, channels, height, width)),)


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width that the model's own configuration names."""
    # timm annotates what it returns, but not what it takes.
    configuration = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    channels, height, width = configuration["input_size"]
    return int(channels), int(height), int(width)
