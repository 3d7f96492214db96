"""A `.pt2` archive opened without running anything that lies in it.

`torch.export.load` unpickles sample inputs, custom objects and some weights with the unrestricted
unpickler, evaluates the text of symbolic sizes, and compiles names of the graph as Python. So the
archive is read here first, record by record, and a new one is written of what was understood:
tensors as raw bytes, the graph checked by `archive_graph`, sample inputs as `weights_only` loading
gives them. torch is only ever handed that new archive, and nothing else can be in it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export.pt2_archive import PT2ArchiveWriter
from torch.utils import _pytree as pytree

from edgeprune.errors import UsageError
from edgeprune.recipe.archive_graph import checked_graph, is_plain

_MODELS = "models/"
_WEIGHTS = "data/weights/"
_CONSTANTS = "data/constants/"
_SAMPLES = "data/sample_inputs/"
_CONFIGS = ((_WEIGHTS, "_weights_config.json"), (_CONSTANTS, "_constants_config.json"))
_TENSORS = {_WEIGHTS: "weight_", _CONSTANTS: "tensor_"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The example inputs of an archive: tensors and plain values only."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CleanArchive:
    """An archive of checked records only, for `torch.export.load`; None without sample inputs."""

    content: bytes
    sample: Sample | None


def read_archive(path: Path) -> CleanArchive:
    """Read a `.pt2` file made by `torch.export.save`, and write it anew of what is understood.

    Raises UsageError for what is not such a file, holds no exported program or several, or holds
    anything that would be unpickled into more than tensors and plain values, or run as code.
    """
    records = _records(path)
    name = _model_name(records, path)
    sample_bytes = records.get(f"{_SAMPLES}{name}.pt", b"")
    sample = _sample(sample_bytes, path) if sample_bytes else None
    clean = {f"{_MODELS}{name}.json": _graph(records[f"{_MODELS}{name}.json"], path)}
    for folder, suffix in _CONFIGS:
        config = f"{folder}{name}{suffix}"
        if config not in records:
            raise _refused(path, f"a record {config}", "none")
        clean[config] = records[config]
        for payload in _tensor_files(records[config], folder, path):
            if payload not in records:
                raise _refused(path, f"a record {payload}", "none")
            clean[payload] = records[payload]
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for record, content in clean.items():
            writer.write_bytes(record, content)
        writer.write_bytes(f"{_SAMPLES}{name}.pt", _saved(sample))
    return CleanArchive(content=buffer.getvalue(), sample=sample)


def _records(path: Path) -> dict[str, bytes]:
    """The archive's records by name below its root folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise _refused(path, "records as torch writes them, stored", "compressed ones")
            contents = [(entry.filename, archive.read(entry)) for entry in entries]
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise _refused(path, "a zip archive", f"{type(error).__name__}: {error}") from error
    records: dict[str, bytes] = {}
    for full_name, content in contents:
        root, _, name = full_name.partition("/")
        if not name or not full_name.startswith(contents[0][0].partition("/")[0] + "/"):
            raise _refused(path, "records below one folder", f"{root!r} beside it")
        if name in records:
            raise _refused(path, "each record once", f"{name!r} twice")
        records[name] = content
    if records.get("archive_format") != b"pt2":
        raise _refused(path, "an archive of the format pt2", "another, or one of an older torch")
    return records


def _model_name(records: Mapping[str, bytes], path: Path) -> str:
    names = [
        name.removeprefix(_MODELS).removesuffix(".json")
        for name in records
        if name.startswith(_MODELS) and name.endswith(".json")
    ]
    if len(names) != 1 or names != ["model"]:
        raise _refused(path, "one exported program, called model", f"{names or 'none'}")
    return names[0]


def _graph(content: bytes, path: Path) -> bytes:
    try:
        return checked_graph(content)
    except ValueError as error:
        raise _refused(path, "a graph of operators and plain names", str(error)) from error


def _tensor_files(content: bytes, folder: str, path: Path) -> list[str]:
    """The records of raw tensor bytes that a config names; anything pickled is refused."""
    try:
        config = json.loads(content)["config"].items()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _refused(path, f"a table of tensors in {folder}", type(error).__name__) from error
    files: list[str] = []
    for name, entry in config:
        file = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(file, str) or not is_plain(name) or not is_plain(file):
            raise _refused(path, f"plain names in {folder}", repr(name)[:80])
        if entry.get("use_pickle") is not False or not file.startswith(_TENSORS[folder]):
            raise _refused(path, f"raw tensors in {folder}", f"the pickled object {name} ({file})")
        files.append(folder + file)
    return list(dict.fromkeys(files))


def _sample(content: bytes, path: Path) -> Sample:
    try:
        loaded: object = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler fails with whatever it stumbles over
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _refused(path, "sample inputs of tensors only", f"a pickle: {why}") from error
    if not isinstance(loaded, tuple) or len(loaded) != 2:
        raise _refused(path, "sample inputs as (args, kwargs)", type(loaded).__name__)
    args, kwargs = loaded
    if not isinstance(args, tuple | list) or not isinstance(kwargs, dict):
        got = f"({type(args).__name__}, {type(kwargs).__name__})"
        raise _refused(path, "sample inputs as (args, kwargs)", got)
    return Sample(args=tuple(args), kwargs={str(key): value for key, value in kwargs.items()})


def _saved(sample: Sample | None) -> bytes:
    if sample is None:
        return b""
    buffer = io.BytesIO()
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, torch.Tensor.detach, (sample.args, dict(sample.kwargs))
    )
    torch.save((args, kwargs), buffer)
    return buffer.getvalue()


def _refused(path: Path, expected: str, got: str) -> UsageError:
    return UsageError(
        f"opening the archive at {path}: expected {expected}, got {got}. Make it with "
        f"torch.export.save(torch.export.export(model.eval(), (x,)), ...), or name a factory.",
        where=str(path),
    )
