"""Buffers that forward assigns while torch.export runs: each new value is written into its buffer.

`self.steps = self.steps + 1` puts another tensor in the place of the buffer. torch.export drops
that in submodules. In the outermost module it appends a `copy_`, and finds the buffer by its number
among all of them, those that are None (a cache that is not filled yet) counted too: the copy goes
into another buffer, or into an input of the user's (torch 2.14, `torch/export/_trace.py`,
`buffer_input_names`).
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
def assigned_buffers(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Meanwhile, a buffer that forward assigns is written in place at the end of the call.

    One of another size, or one that was None, is not: its value is made in the graph, at every
    call. `names` gets all that were assigned ("encoder.steps").
    """
    # While it is traced, a module may be a stand-in that shares the buffers of the real one.
    paths = {id(part._buffers): path for path, part in model.named_modules()}
    before: dict[tuple[int, str], tuple[dict[str, torch.Tensor | None], torch.Tensor | None]] = {}

    def note(module: nn.Module, name: str, _: object) -> None:
        key = id(module._buffers)
        if key in paths:
            names.add(f"{paths[key]}.{name}".removeprefix("."))
            before.setdefault((key, name), (module._buffers, module._buffers.get(name)))

    def settle(*_call: object) -> None:
        for (_, name), (buffers, old) in before.items():
            new = buffers.get(name)
            if old is None or new is None or new is old:
                continue
            if _alike(old, new):
                old.copy_(new)
            buffers[name] = old
        before.clear()

    hooks = register_module_buffer_registration_hook(note), model.register_forward_hook(settle)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _alike(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Whether they have one dtype and shape; a size that is no number is another one."""
    sizes = list(new.shape)
    known = all(isinstance(size, int) for size in sizes)
    return known and sizes == list(old.shape) and new.dtype == old.dtype


def drop_appended_copies_(program: ExportedProgram) -> None:
    """Erase what export appends for assigned buffers: `assigned_buffers` wrote them already."""
    for node in list(program.graph.nodes):
        if node.target is aten.copy_.default and node.name.startswith(_APPENDED):
            program.graph.erase_node(node)
    program.graph_module.recompile()


@contextlib.contextmanager
def same_containers(model: nn.Module) -> Iterator[None]:
    """Put lists and dicts that modules hold back in place: torch.export leaves copies of them.

    One that two modules share, or that the user holds too, stays shared. What forward itself puts
    in place, or changes, is left as it is.
    """
    held = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) in (list, dict)
    ]
    try:
        yield
    finally:
        for module, name, value in held:
            if _is_copy(vars(module).get(name), value):
                vars(module)[name] = value


def _is_copy(new: object, old: object) -> bool:
    """Whether a list or dict holds the very things that another does, copies of containers too."""
    if new is old:
        return True
    if isinstance(new, dict) and isinstance(old, dict) and type(new) is type(old):
        return new.keys() == old.keys() and all(_is_copy(new[key], old[key]) for key in new)
    if isinstance(new, list | tuple) and isinstance(old, list | tuple) and type(new) is type(old):
        return len(new) == len(old) and all(map(_is_copy, new, old))
    return False
