"""Where a node of the graph comes from: the module path and the user's source line."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
# Frames of torch itself say nothing to a user: the line that called into torch does.
_TORCH = re.compile(r"[/\\]torch[/\\](nn|_|utils|export|fx|functional)")
_LIBRARY = re.compile(r"[/\\](torch|contextlib\.py|functools\.py)([/\\]|$)")
_PACKAGES = re.compile(r".*?[/\\](?:site|dist)-packages[/\\]")


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made the node, `""` for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return str(node.meta.get("module", ""))
    path = str(list(stack.values())[-1][0])
    # A module called twice appears as `block@1`; a root may be spelled `L['self']`.
    path = path.partition("@")[0]
    return path.removeprefix("L['self']").strip(".")


def source_line(node: fx.Node) -> str:
    """`file:line` of the user's innermost frame, or `""` where export noted none."""
    frames = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    return user_line(frames) or str(node.meta.get("where", ""))


def user_line(frames: Sequence[tuple[str, int | str]]) -> str:
    """`file:line` of the innermost of (file, line) that is not torch's own, or `""`."""
    users = [frame for frame in frames if not _TORCH.search(frame[0])] or list(frames)
    return f"{_short(users[-1][0])}:{users[-1][1]}" if users else ""


def running_line() -> str:
    """`file:line` of the user's innermost frame that is running now, or `""` without one."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if _is_users(frame.f_code.co_filename):
            return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@cache
def _is_users(file: str) -> bool:
    package = Path(__file__).resolve().parent.parent
    return (
        not _TORCH.search(file)
        and not _LIBRARY.search(file)
        and Path(file).is_file()
        and package not in Path(file).resolve().parents
    )


@cache
def _short(file: str) -> str:
    inside = _PACKAGES.sub("", file)
    if inside != file:
        return inside
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file


def keep_only_provenance(graph: fx.Graph) -> None:
    """Drop every note of export but module path and source line (in place).

    Shapes, guards and symbolic values in the metadata go stale with the first edit, so nothing
    may read them afterwards. Path and line are kept as torch.export spells them too: then it hands
    them on when a user exports the pruned model, and the lines of a `.pt2` are those of the code.
    """
    for node in graph.nodes:
        module, where = module_path(node), source_line(node)
        node.meta = {"module": module, "where": where}
        file, _, line = where.rpartition(":")
        if file:
            node.meta["stack_trace"] = f'  File "{file}", line {line}, in forward\n'
        if module:
            node.meta["nn_module_stack"] = {module: (module, "torch.nn.modules.module.Module")}


def error_line(error: BaseException) -> str:
    """`file:line` of the user's innermost frame that an error passed, or `""` without one."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).resolve().parent.parent
    for frame in reversed(frames):
        is_ours = package in Path(frame.filename).resolve().parents
        if Path(frame.filename).is_file() and not is_ours and not _LIBRARY.search(frame.filename):
            return f"{_short(frame.filename)}:{frame.lineno}"
    return ""
