"""Cached functions that are asked for sizes answer anew: an earlier answer has no provenance.

A function under `functools.lru_cache` is asked with tagged integers and answers with those of an
earlier call, which equal them and have no tags (einops keeps the sizes of every reshape so); and
what it remembers of a traced run would be tagged for the rest of the process.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from torch import nn

from edgeprune.surgery.tagged import Tagged

_Cache = functools._lru_cache_wrapper
# Of no user's sizes, and asked often.
_OTHERS = {"torch", "sympy", "numpy", "edgeprune", *sys.stdlib_module_names}


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Meanwhile, cached functions of imported modules and of the model's classes trace sizes.

    Asked with tagged integers for integers, they compute; else they are what they were.
    """
    replaced: list[tuple[ModuleType | type, str, object]] = []
    try:
        owners: list[ModuleType | type] = [*_modules(), *_classes(model)]
        for owner in owners:
            for name, found in list(vars(owner).items()):
                if isinstance(found, _Cache):
                    replaced.append((owner, name, found))
                    _put(owner, name, _tracing(found))
        yield
    finally:
        for owner, name, found in replaced:
            _put(owner, name, found)


def _put(owner: ModuleType | type, name: str, value: object) -> None:
    """Past whatever the owner does when an attribute of it is set."""
    if isinstance(owner, type):
        type.__setattr__(owner, name, value)
    else:
        vars(owner)[name] = value


def _modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        # Anything may have put itself there.
        held: object = module
        if isinstance(held, ModuleType) and name.partition(".")[0] not in _OTHERS:
            yield held


def _classes(model: nn.Module) -> set[type]:
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return {kind for kind in kinds if kind.__module__.partition(".")[0] not in _OTHERS}


def _tracing(cached: functools._lru_cache_wrapper[object]) -> Callable[..., object]:
    """The function; a recursion of it goes through its cache, or it would not end."""
    inside = False

    @functools.wraps(cached)
    def ask(*args: object, **kwargs: object) -> object:
        nonlocal inside
        given = (args, tuple(kwargs.values()))
        if not any(isinstance(leaf, Tagged) for leaf in _leaves(given)):
            return cached(*args, **kwargs)
        plain = {name: _plain(value) for name, value in kwargs.items()}
        known = cached(*(_plain(value) for value in args), **plain)
        if inside or not any(isinstance(leaf, int) for leaf in _leaves(known)):
            return known
        inside = True
        try:
            return cached.__wrapped__(*args, **kwargs)
        finally:
            inside = False

    for question in ("cache_info", "cache_clear", "cache_parameters"):
        setattr(ask, question, getattr(cached, question))
    return ask


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, tuple | list | frozenset):
        for member in value:
            yield from _leaves(member)
    else:
        yield value


def _plain(value: object) -> object:
    """The same argument without tags."""
    if isinstance(value, Tagged):
        return int(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        made: object = type(value)(*map(_plain, value))  # type: ignore[arg-type]
        return made
    if isinstance(value, tuple | frozenset):
        members: list[object] = [_plain(member) for member in value]
        return type(value)(members)
    return value
