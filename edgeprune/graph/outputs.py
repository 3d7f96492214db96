"""Values that a model takes or gives and torch.export does not: made known, or left out and told.

A dataclass that nobody registered is a container like any other. Anything else that is no tensor,
number or string (the cache of a language model) has no place in a graph: None stands for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import namedtuple
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.errors import ModelNotSupported

# What torch.export takes for a member of an output.
_KNOWN = (torch.Tensor, int, float, str, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)


def know_dataclasses(tree: object) -> None:
    """Register every dataclass in `tree` with torch's pytree: its members are its fields.

    One that is not made from its fields (`init=False`) stays what it is.
    """
    tried: set[type] = set()
    while True:
        kinds = {type(leaf) for leaf in pytree.tree_leaves(tree)} - tried
        new = [kind for kind in kinds if _is_made_of_fields(kind)]
        if not new:
            return
        for kind in new:
            torch.export.register_dataclass(kind)
        tried |= kinds


def know_dataclasses_of(spec: pytree.TreeSpec) -> None:
    """Register those that a structure names, in a process that has not met them yet."""
    kind = spec.type
    if kind is not None and kind not in pytree.SUPPORTED_NODES and _is_made_of_fields(kind):
        torch.export.register_dataclass(kind)
    for child in spec.children():
        know_dataclasses_of(child)


def without_classes(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The same structure, each dataclass a dict of its fields, each named tuple a tuple.

    So do the outputs of transformers become dicts. For a reader that has no code of the user's;
    a field that was None has no place in the structure, and none in the dict.
    """
    if spec.type is None:
        return spec
    members = [without_classes(child) for child in spec.children()]
    kind, context = spec.type, spec.context
    if kind is namedtuple or (isinstance(kind, type) and issubclass(kind, tuple)):
        kind, context = tuple, None
    elif dataclasses.is_dataclass(kind) and len(_field_names(context)) == len(members):
        kind, context = dict, _field_names(context)
    return pytree.TreeSpec(kind, context, members)


def _field_names(context: object) -> list[str]:
    """The fields of a dataclass: its context is their names, or (names, names of empty ones)."""
    if isinstance(context, tuple | list) and context and isinstance(context[0], list):
        context = context[0]
    names = context if isinstance(context, list | tuple) else []
    return [name for name in names if isinstance(name, str)]


def _is_made_of_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) and all(field.init for field in dataclasses.fields(kind))


def foreign(model: nn.Module, leaves: list[object]) -> tuple[str, ...]:
    """What the graph leaves out of the outputs, a line each.

    Raises ModelNotSupported where nothing but such values comes out.
    """
    kinds = dict.fromkeys(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _KNOWN))
    if kinds and not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise ModelNotSupported(
            f"capture at {type(model).__name__}: expected tensors among its outputs, got "
            f"{', '.join(kinds)}. Return tensors, or a tuple, dict or dataclass of them."
        )
    return tuple(f"an output of type {kind}, which no graph holds: None there" for kind in kinds)


def only_known(result: object) -> object:
    """What a model gives, with None for what no graph holds."""
    known: object = pytree.tree_map(lambda v: v if isinstance(v, _KNOWN) else None, result)
    return known


@contextlib.contextmanager
def known_outputs(model: nn.Module) -> Iterator[None]:
    """Meanwhile `model` gives None for every value that torch.export does not take."""
    own = vars(model).get("forward")
    forward = model.forward

    @functools.wraps(forward)
    def run(*args: object, **kwargs: object) -> object:
        return only_known(forward(*args, **kwargs))

    model.forward = run
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own
