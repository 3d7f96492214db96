"""Code that computes anew what it would remember: a cached answer does not know its expression.

A function under `functools.lru_cache` is asked with tagged integers and answers with those of an
earlier call, which equal them and have no tags (einops keeps the sizes of every reshape so); and
what it remembers of a traced run would be tagged for the rest of the process.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_Cache = functools._lru_cache_wrapper
# Of no user's sizes, and asked often.
_OTHERS = {"torch", "sympy", "numpy", *sys.stdlib_module_names}


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Meanwhile, cached functions of imported modules and of the model's classes are plain ones."""
    replaced = [
        (owner, name, found)
        for owner in (*_modules(), *_classes(model))
        for name, found in list(vars(owner).items())
        if isinstance(found, _Cache)
    ]
    for owner, name, found in replaced:
        setattr(owner, name, found.__wrapped__)
    try:
        yield
    finally:
        for owner, name, found in replaced:
            setattr(owner, name, found)


def _modules() -> Iterator[object]:
    for name, module in list(sys.modules.items()):
        if hasattr(module, "__dict__") and name.partition(".")[0] not in _OTHERS:
            yield module


def _classes(model: nn.Module) -> set[type]:
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return {kind for kind in kinds if kind.__module__.partition(".")[0] not in _OTHERS}
