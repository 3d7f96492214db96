"""Export of code that asks whether it is traced, and is told that it is not.

Under `torch.compiler.is_compiling()` a model may go another way than in eager: leave out a default
that export then misses (the attention mask of T5's relatives), or a check. What the user runs is
the way of eager, and that is what the graph is compared with.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.export import ExportedProgram

from edgeprune.graph.drafting import Shapes
from edgeprune.graph.inputs import Inputs

_QUESTIONS = ("is_compiling", "is_dynamo_compiling", "is_exporting")


def exported_untold(model: nn.Module, inputs: Inputs, shapes: Shapes) -> ExportedProgram:
    """Non-strict export of `model`, whose code takes the way of eager; raises what torch raises."""
    with _untold():
        return torch.export.export(
            model, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False
        )


@contextlib.contextmanager
def _untold() -> Iterator[None]:
    """Meanwhile `torch.compiler` answers no to all code but torch's own, which has to know."""
    answers = {name: getattr(torch.compiler, name) for name in _QUESTIONS}
    for name, answer in answers.items():
        setattr(torch.compiler, name, _to_torch_alone(answer))
    try:
        yield
    finally:
        for name, answer in answers.items():
            setattr(torch.compiler, name, answer)


def _to_torch_alone(answer: Callable[[], bool]) -> Callable[[], bool]:
    def told() -> bool:
        asks = str(sys._getframe(1).f_globals.get("__name__", ""))
        return asks.partition(".")[0] == "torch" and answer()

    return told
