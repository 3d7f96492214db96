"""Buffers that forward assigns while torch.export runs: what export makes of them is put right.

For every assigned buffer of the outermost module, export appends a `copy_` of the new value into
the buffer. It finds the buffer by its number among all of them, and counts those that are None
(a cache that is not filled yet): the copy goes into another buffer, or into an input of the user's
(torch 2.14, `torch/export/_trace.py`, `buffer_input_names`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.modules.module import register_module_buffer_registration_hook

aten = torch.ops.aten

# The name that fx gives to a node that export appends; a copy_ of the user's is called `copy_`.
_APPENDED = "copy__default"


@contextlib.contextmanager
def assigned_buffers(model: nn.Module) -> Iterator[dict[str, bool]]:
    """Meanwhile, buffers of `model` itself that forward assigns, in order: whether there was one.

    {"steps": True, "cache": False}: `steps` got another value, `cache` was None or not there.
    """
    before = dict(model._buffers)
    found: dict[str, bool] = {}

    def note(module: nn.Module, name: str, _: object) -> None:
        if module._buffers is model._buffers:
            found.setdefault(name, before.get(name) is not None)

    hook = register_module_buffer_registration_hook(note)
    try:
        yield found
    finally:
        hook.remove()


def mend_assignments_(program: ExportedProgram, assigned: dict[str, bool]) -> None:
    """Let every appended copy go into its own buffer; without one it is left out (in place).

    What forward makes for a buffer that was None is made in the graph, at every call.
    """
    graph = program.graph
    signature = program.graph_signature
    by_buffer = {buffer: node for node, buffer in signature.inputs_to_buffers.items()}
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    copies = [node for node in graph.nodes if node.name.startswith(_APPENDED)]
    copies = [node for node in copies if node.target is aten.copy_.default]
    if not copies:
        return
    for node, (name, was_there) in zip(copies, assigned.items(), strict=True):
        if was_there:
            node.update_arg(0, nodes[by_buffer[name]])
        else:
            graph.erase_node(node)
    program.graph_module.recompile()
