"""What capture is given: a module with values and dense example inputs, or one clear refusal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from edgeprune.errors import UsageError
from edgeprune.graph.inputs import Inputs


def require_module(model: object) -> None:
    """UsageError for what is no module of Python code, or has tensors without shape or values."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"capture at model: expected a torch.nn.Module that runs Python code, got "
            f"{type(model).__name__}. Give the module itself (of a result of prune(), its .model)."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(
                f"capturing the model at {name}: expected a tensor with a shape, got a lazy one. "
                f"Run the model once on an example first.",
                where=name,
            )
        if tensor.is_meta:
            raise UsageError(
                f"capturing the model at {name}: expected a tensor with values, got one on the "
                f"meta device. Load the weights first.",
                where=name,
            )


def as_inputs(args: tuple[object, ...], kwargs: Mapping[str, object] | None) -> Inputs:
    """Example inputs of one call; UsageError where their form is not that, or a tensor is odd."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise UsageError(
            f"kwargs at analyze(): expected a dict of inputs by name, got {type(kwargs).__name__}. "
            "Write analyze(model, (x,), {'mask': m})."
        )
    if isinstance(args, torch.Tensor):
        raise UsageError(
            "args at analyze(): expected a tuple of example inputs, got a tensor. "
            "Write analyze(model, (x,))."
        )
    given = Inputs(args=tuple(args), kwargs=dict(kwargs or {}))
    for key, leaf in pytree.tree_leaves_with_path((given.args, given.kwargs)):
        if isinstance(leaf, torch.Tensor) and (kind := _other_than_dense(leaf)):
            where = "args" if key[0] == pytree.SequenceKey(0) else "kwargs"
            where += pytree.keystr(key[1:])
            raise UsageError(
                f"example inputs at {where}: expected a dense tensor with values, got one that "
                f"is {kind}. Give a dense one, and convert it inside forward.",
                where=where,
            )
    return given


def _other_than_dense(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta:
        return "on the meta device"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return None
