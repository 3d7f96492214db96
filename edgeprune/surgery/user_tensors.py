"""The tensors of a pruned graph, put into a module of the user's class by name."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm

from edgeprune.errors import ModelNotSupported, UsageError
from edgeprune.graph.module import CapturedModule


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers and other tensor attributes by name; a tied one under all its names."""
    return {
        **_plain_tensors(model),
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }


def _plain_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that are neither: a table that `__init__` made and did not register."""
    return {
        f"{path}.{name}".removeprefix("."): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }


def unfold(model: nn.Module, graph: CapturedModule) -> tuple[str, ...]:
    """Make parameters of weights that the user's class computes and the graph has whole.

    Of a copy that shares the user's tensors (in place); those stay as they are. Names of weights.
    Raises `ModelNotSupported` where forward itself computes the weight, `UsageError` where the
    module that has it is not there: it is another model.
    """
    own = tensors_of(model)
    folded = []
    for name, _ in graph.named_parameters():
        if name in own:
            continue
        path, _, leaf = name.rpartition(".")
        if not _fold(model, path, leaf):
            raise ModelNotSupported(
                f"to_module at {name}: expected a weight of this name, got a class that computes "
                "it in forward. Use pruned.model, which is the pruned model.",
                where=name,
            )
        folded.append(name)
    return tuple(folded)


def _fold(model: nn.Module, path: str, leaf: str) -> bool:
    try:
        owner = model.get_submodule(path)
    except AttributeError as error:
        raise UsageError(
            f"to_module at {path}: expected a module of this name as in the model that was "
            f"analysed, got none in {type(model).__name__}. Give the model that pruned.analysis "
            "is of.",
            where=path,
        ) from error
    if parametrize.is_parametrized(owner, leaf) and isinstance(
        owner.parametrizations, nn.ModuleDict
    ):
        # Removal writes into the original tensors, and these are the user's.
        owner.parametrizations[leaf] = copy.deepcopy(owner.parametrizations[leaf])
        parametrize.remove_parametrizations(owner, leaf, leave_parametrized=True)
        return True
    for remove in (remove_weight_norm, remove_spectral_norm):
        try:
            remove(owner, leaf)
        except ValueError:  # there is no such hook
            continue
        return True
    return False


def put_tensors(module: nn.Module, graph: CapturedModule, user: nn.Module) -> tuple[str, ...]:
    """Give `module` the graph's tensors, as copies of their own (in place), ties as they were.

    `requires_grad` is the user's, where the user has a parameter of that name. Returns the names
    that the graph has no tensor for: those are copies of the user's.
    """
    shrunk = tensors_of(graph)
    trains = {n: p.requires_grad for n, p in user.named_parameters(remove_duplicate=False)}
    own = tensors_of(module)
    sources = {id(old): shrunk[name] for name, old in own.items() if name in shrunk}
    made: dict[int, torch.Tensor] = {}
    for name, old in own.items():
        if id(old) not in made:
            made[id(old)] = _like(old, sources.get(id(old), old), trains, name)
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = made[id(old)]
        else:
            setattr(owner, leaf, made[id(old)])  # an LSTM follows its weights only this way
    registered = own.keys() - _plain_tensors(module)
    unread = [n for n, old in own.items() if id(old) not in sources and n in registered]
    return tuple(name for name in unread if not name.endswith("num_batches_tracked"))


def _like(
    old: torch.Tensor, source: torch.Tensor, trains: dict[str, bool], name: str
) -> torch.Tensor:
    values = source.detach().clone()
    if isinstance(old, nn.Parameter):
        return nn.Parameter(values, requires_grad=trains.get(name, source.requires_grad))
    return values
