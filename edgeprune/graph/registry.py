"""The table of rules: which function says what an ATen overload does to labels.

A rule takes the `Trace` and then the node's own arguments, tensors as `Value`, the rest as they
are (symbolic sizes as the integers of the example), and returns a `Value`, a tuple of them for
an op with several outputs, or None for one without a tensor result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch
from torch._ops import OpOverload

from edgeprune.graph.labels import Value

Outcome: TypeAlias = "Value | tuple[Value | None, ...] | None"
Rule: TypeAlias = Callable[..., Outcome]
R = TypeVar("R", bound=Rule)

_RULES: dict[OpOverload, Rule] = {}
_FOREIGN: dict[str, Rule] = {}


def rule(*overloads: OpOverload) -> Callable[[R], R]:
    """Register a rule for exact overloads, e.g. `@rule(aten.flip.default)`.

    Raises `TypeError` for a packet such as `aten.flip`, and for an overload that has a rule.
    """

    def register(function: R) -> R:
        for overload in overloads:
            if not isinstance(overload, OpOverload):
                raise TypeError(
                    f"rule at {function.__name__}: expected an overload, got {overload!r}. "
                    f"Write {overload}.default."
                )
            if overload in _RULES:
                raise TypeError(
                    f"rule at {function.__name__}: expected an overload without a rule, got "
                    f"{overload}. Remove one of the two."
                )
            _RULES[overload] = function
        return function

    return register


def foreign_rule(*names: str) -> Callable[[R], R]:
    """Register a rule by schema name, `"torchvision::nms"`: for operators another package brings.

    They exist once that package is imported, which is the model's business.
    """

    def register(function: R) -> R:
        _FOREIGN.update(dict.fromkeys(names, function))
        return function

    return register


def rule_for(target: object) -> Rule | None:
    """The rule of an overload; the pointwise rule where torch tags it so; else None.

    An in-place op without rule or tag (`hardswish_`) has that of its out-of-place form.
    """
    if not isinstance(target, OpOverload):
        return None
    found = _RULES.get(target) or _FOREIGN.get(target._schema.name)
    if found is None and torch.Tag.pointwise in target.tags:
        return _RULES[torch.ops.aten.add.Tensor]
    if found is None:
        plain = _out_of_place(target)
        return None if plain is None else rule_for(plain)
    return found


def _out_of_place(target: OpOverload) -> OpOverload | None:
    namespace, _, name = target._schema.name.partition("::")
    if not name.endswith("_") or name.startswith("_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    found = getattr(packet, target._overloadname, None)
    return found if isinstance(found, OpOverload) else None


def known_overloads() -> tuple[OpOverload, ...]:
    """Every overload with a rule of its own, of what is imported now."""
    names = (name.partition("::") for name in _FOREIGN)
    packets = (getattr(getattr(torch.ops, space), name, None) for space, _, name in names)
    return (*_RULES, *(packet.default for packet in packets if packet is not None))
