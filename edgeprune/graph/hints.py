"""Facts at the example inputs without a run: what torch.export noted, held against a run.

Right after export nothing has been edited, so the notes are those of this very graph. They are
read then, once, and dropped (docs/decisions/0017).
"""

from __future__ import annotations

import torch

from edgeprune.graph.module import CapturedModule, attribute
from edgeprune.graph.observe import Fact, Facts, TensorFact, describe


class _Unknown(Exception):
    """Export noted nothing of a value, or something else than the run saw."""


def hinted_facts(module: CapturedModule, seen: Facts) -> Facts | None:
    """The fact of every node at the inputs that `module` was exported with.

    `seen` holds the facts of a run with another batch size: what export noted as fixed must be
    the same there. None where a note is missing, depends on values of the input, or differs.
    """
    facts: dict[str, Fact] = {}
    try:
        for node in module.graph.nodes:
            if node.op == "output":
                facts[node.name] = _outputs(node.args[0], facts)
            elif node.op == "get_attr":
                facts[node.name] = describe(attribute(module, str(node.target)))
            elif "val" in node.meta:
                facts[node.name] = _fact(node.meta["val"], seen[node.name])
            else:
                return None
    except _Unknown:
        return None
    return facts


def _outputs(argument: object, facts: dict[str, Fact]) -> Fact:
    if isinstance(argument, torch.fx.Node):
        return facts[argument.name]
    if isinstance(argument, list | tuple):
        return tuple(_outputs(member, facts) for member in argument)
    return describe(argument)


def _fact(noted: object, seen: Fact) -> Fact:
    if isinstance(noted, torch.Tensor):
        if not isinstance(seen, TensorFact) or seen.dtype != noted.dtype:
            raise _Unknown
        if len(seen.shape) != noted.dim():
            raise _Unknown
        sizes = (_size(size, now) for size, now in zip(noted.shape, seen.shape, strict=True))
        return TensorFact(tuple(sizes), noted.dtype)
    if isinstance(noted, list | tuple):
        if not isinstance(seen, tuple) or len(noted) != len(seen):
            raise _Unknown
        return tuple(_fact(member, part) for member, part in zip(noted, seen, strict=True))
    if isinstance(noted, int | torch.SymInt) and isinstance(seen, int):
        return _size(noted, seen)
    if noted is None and seen is None:
        return None
    raise _Unknown  # numbers other than sizes depend on values


def _size(noted: int | torch.SymInt, seen: int) -> int:
    """A size at the example: fixed and as it was seen, or one that follows from the batch."""
    if isinstance(noted, torch.SymInt):
        hint = noted.node.hint
        if not isinstance(hint, int):
            raise _Unknown
        return hint
    if isinstance(noted, bool) or noted != seen:
        raise _Unknown
    return int(noted)
