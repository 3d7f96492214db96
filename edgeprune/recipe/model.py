"""The user's model: from a factory, a zoo or a file, with weights and example inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgeprune.errors import EnvironmentFailed, UsageError, UserCodeError
from edgeprune.recipe.example import example_inputs
from edgeprune.recipe.factory import (
    archive_file,
    call_user,
    load_factory,
    onnx_file,
    parse_factory,
)
from edgeprune.recipe.inputs import InputSpec, parse_inputs
from edgeprune.recipe.trial import try_model
from edgeprune.recipe.weights import load_weights_

_ZOOS = ("torchvision", "timm")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model in eval mode with one example of its inputs, batch first, and a name for people."""

    module: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    name: str


def load_model(
    spec: str,
    *,
    weights: Path | str | None = None,
    input: str | None = None,  # noqa: A002 (the recipe's and the command line's word)
    base_dir: Path | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Load `file.py:function`, `package.module:function`, `torchvision:NAME`, `timm:NAME`, a file.

    A file is a `.pt2` of torch.export.save, or an `.onnx` of a float model.

    weights: a file relative to `base_dir` (default: the current directory). input: shapes such as
    `2x3x224x224`, see `parse_inputs`; it wins over the factory's own example. Values are made from
    `seed`. The model is run once on its example. Raises UsageError, UserCodeError or
    EnvironmentFailed (a zoo that is not installed).
    """
    base_dir = base_dir or Path.cwd()
    specs = None if input is None else parse_inputs(input)
    place, _, name = spec.partition(":")
    archive, onnx = archive_file(spec, base_dir), onnx_file(spec, base_dir)
    kwargs: Mapping[str, object] = {}
    if archive is not None:
        module, args, kwargs, name = _from_archive(archive, specs, seed)
    elif onnx is not None:
        module, args, name = _from_onnx(onnx, specs, seed)
    elif place in _ZOOS:
        module, known = _from_zoo(place, name, seed)
        args = example_inputs(specs or known, seed)
    else:
        module, args, kwargs, name = _from_factory(spec, base_dir, specs, seed)
    if weights is not None:
        load_weights_(module, base_dir / weights)
    if archive is None and onnx is None:  # an exported graph knows no other mode than its own
        module.eval()
    try_model(module, args, kwargs, name)
    return LoadedModel(module=module, args=args, kwargs=kwargs, name=name)


def _from_archive(
    path: Path, specs: tuple[InputSpec, ...] | None, seed: int
) -> tuple[nn.Module, tuple[object, ...], Mapping[str, object], str]:
    # Not at the top: it takes a second to import, and most models come from elsewhere.
    from edgeprune.recipe.exported import load_exported

    exported = load_exported(path)
    if specs is not None:
        return exported.module, example_inputs(specs, seed), {}, path.stem
    if exported.args is None:
        raise UsageError(
            f"loading the model at {path}: expected sample inputs in the archive, got none. Give "
            f"their shape: --input 2x3x224x224 or [model] input.",
            where=str(path),
        )
    return exported.module, exported.args, exported.kwargs, path.stem


def _from_onnx(
    path: Path, specs: tuple[InputSpec, ...] | None, seed: int
) -> tuple[nn.Module, tuple[object, ...], str]:
    # Not at the top: ONNX Runtime takes a while to import, and most models come from elsewhere.
    from edgeprune.recipe.onnx_model import imported

    module, args = imported(path, None if specs is None else example_inputs(specs, seed), seed)
    return module, args, path.stem


def _from_zoo(zoo: str, name: str, seed: int) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    if importlib.util.find_spec(zoo) is None:
        raise EnvironmentFailed(
            f"loading the model at {zoo}:{name}: expected the package {zoo}, got none. "
            f"Install it with: pip install {zoo}",
            where=zoo,
        )
    # Not at the top: most models come from neither, and they need not be installed.
    if zoo == "timm":
        from edgeprune.recipe.timm_zoo import timm_model

        return timm_model(name, seed)
    from edgeprune.recipe.zoo import torchvision_model

    return torchvision_model(name, seed)


def _from_factory(
    spec: str, base_dir: Path, specs: tuple[InputSpec, ...] | None, seed: int
) -> tuple[nn.Module, tuple[object, ...], Mapping[str, object], str]:
    factory = parse_factory(spec)
    function = load_factory(factory, base_dir)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # random weights of a factory that loads none are the same each run
        made = call_user(function, "making the model", spec)
    args: tuple[object, ...] | None = None
    kwargs: Mapping[str, object] = {}
    if isinstance(made, tuple) and len(made) == 3:
        made, args, kwargs = _as_example(made, spec)
    if not isinstance(made, nn.Module):
        raise UserCodeError(
            f"making the model at {spec}: expected an nn.Module or (module, args, kwargs), got "
            f"{type(made).__name__}. Return one of these.",
            where=spec,
        )
    if specs is not None:
        args, kwargs = example_inputs(specs, seed), {}
    if args is None:
        raise UsageError(
            f"making the model at {spec}: expected an example input, got a module alone. Return "
            f"(module, args, kwargs), or give its shape: --input 2x3x224x224 or [model] input.",
            where=spec,
        )
    name = Path(factory.place).stem if factory.is_file else factory.place.rpartition(".")[2]
    return made, args, kwargs, f"{type(made).__name__} ({name}:{factory.function})"


def _as_example(
    made: tuple[object, ...], spec: str
) -> tuple[object, tuple[object, ...], Mapping[str, object]]:
    module, args, kwargs = made
    if isinstance(args, torch.Tensor):
        args = (args,)
    if kwargs is None:
        kwargs = {}
    if not isinstance(args, tuple | list) or not isinstance(kwargs, Mapping):
        raise UserCodeError(
            f"making the model at {spec}: expected (module, args tuple, kwargs dict), got "
            f"({type(module).__name__}, {type(args).__name__}, {type(kwargs).__name__}). "
            f"Return the example as a tuple of tensors and a dict.",
            where=spec,
        )
    return module, tuple(args), {str(name): value for name, value in kwargs.items()}
