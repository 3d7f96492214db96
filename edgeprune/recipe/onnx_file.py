"""Read an ONNX file that may be hostile: nothing outside its folder is opened for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from edgeprune.errors import UsageError


def read_model(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file, its external data checked but not loaded.

    Raises UsageError for a file that is missing, empty, truncated, not ONNX or not valid by
    onnx.checker, and for external data that is missing or lies outside the file's folder.
    """
    try:
        size_bytes = path.stat().st_size
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except Exception as error:  # protobuf's own error classes differ between its builds
        raise _unreadable(path, f"{type(error).__name__}: {_one_line(error)}") from error
    if not size_bytes or (not model.graph.node and not model.graph.output):
        raise _unreadable(path, "an empty file" if not size_bytes else "one without a graph")
    external_files(path, model)
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # as above; the checker also raises RuntimeError and ValueError
        raise _unreadable(path, f"onnx.checker says: {_one_line(error)}") from error
    return model


def external_files(path: Path, model: onnx.ModelProto) -> tuple[Path, ...]:
    """The files that hold the model's external data, each once, sorted.

    Raises UsageError for one that is missing, or that is not below the model's own folder once
    links are followed: a model could otherwise read any file of this machine.
    """
    folder = path.parent.resolve()
    files = []
    for location in sorted(set(_external_locations(model.graph))):
        file = (folder / location).resolve()
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            raise UsageError(
                f"reading the model at {path}: expected external data below {folder}, got "
                f"{location!r}, which lies outside. Do not use this file.",
                where=str(path),
            )
        if not file.is_file():
            raise UsageError(
                f"reading the model at {path}: expected its weights in {folder / location}, got "
                f"no such file. Keep the two files together.",
                where=str(folder / location),
            )
        files.append(file)
    return tuple(files)


def operators_of(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs, subgraphs and local functions included, sorted by name.

    One of another domain than ONNX's is written with it: `com.microsoft.FusedConv`.
    """
    counts: dict[str, int] = {}
    functions = {(f.domain, f.name) for f in model.functions}
    nodes = [*_nodes(model.graph.node)]
    for function in model.functions:
        nodes += _nodes(function.node)
    for node in nodes:
        if (node.domain, node.op_type) in functions:
            continue
        plain = node.domain in ("", "ai.onnx")
        name = node.op_type if plain else f"{node.domain}.{node.op_type}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operator set, 1 where the file names none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def _nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)
            for inner in attribute.graphs:
                yield from _nodes(inner.node)


def _external_locations(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of external files, as the tensors of a graph and of its sub-graphs give them."""
    yield from (name for tensor in graph.initializer for name in _locations(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            yield from _locations(attribute.t)
            yield from (name for tensor in attribute.tensors for name in _locations(tensor))
            yield from _external_locations(attribute.g)
            for inner in attribute.graphs:
                yield from _external_locations(inner)


def _locations(tensor: onnx.TensorProto) -> list[str]:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return []
    return [entry.value for entry in tensor.external_data if entry.key == "location"]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:400]


def _unreadable(path: Path, got: str) -> UsageError:
    return UsageError(
        f"reading the model at {path}: expected an ONNX file, got {got}. Check the path, or "
        f"export it again.",
        where=str(path),
    )
