"""The work folder of a run, `DIR.work`: its lock, its journal, and what is left of another run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import edgeprune
from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.pipeline.journal import JOURNAL, Header, Journal, read_journal
from edgeprune.recipe.schema import Recipe, recipe_hash
from edgeprune.release.bundle import work_folder
from edgeprune.targets import Target

STEPS = "steps"
FAILED = "failed"
"""The report of a failed proof, where the bundle's own place holds a good one."""
_LOCK = "lock"
# Everything that a run ever puts there; a folder with anything else is somebody else's.
_MODELS = ("dense.onnx", "probe.onnx")
_FOLDERS = (STEPS, FAILED, f"{FAILED}.work", "bundle", "replaced")
_OURS = {JOURNAL, _LOCK, *_FOLDERS, *_MODELS, *(f"{m}.data" for m in _MODELS)}
_HEADER = "run"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """An open work folder: nobody else writes to it. `torn`: the journal's last line was cut."""

    folder: Path
    journal: Journal
    torn: bool

    @property
    def resumed(self) -> bool:
        """Whether an earlier run left finished steps."""
        return len(self.journal.steps) > 1

    @property
    def steps(self) -> Path:
        """Where the models of finished steps lie."""
        return self.folder / STEPS


def target_hash(target: Target) -> str:
    """SHA-256 (hex) of a target profile's values: two that differ do not share a build."""
    return hashlib.sha256(target.model_dump_json().encode()).hexdigest()


@contextlib.contextmanager
def open_work(out: Path, recipe: Recipe, target: Target, *, fresh: bool) -> Iterator[Work]:
    """The work folder of a run to `out`, locked for the length of the block.

    Raises UsageError where the folder is not ours, holds steps of another recipe, target or
    version (unless `fresh`, which removes them), or its journal was changed; EnvironmentFailed
    where another run is at work there.
    """
    folder = work_folder(out)
    _require_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if fresh:
            _clear(folder)
        for growing in folder.glob(".*"):
            shutil.rmtree(growing)
        yield _opened(folder, _header(recipe, target))


def _opened(folder: Path, header: Header) -> Work:
    journal, torn = read_journal(folder / JOURNAL)
    if not journal.steps:
        if (folder / STEPS).exists() and any((folder / STEPS).iterdir()):
            raise UsageError(
                f"going on with the run at {folder / JOURNAL}: expected a journal of the steps "
                f"beside it, got {'one cut short' if torn else 'none'}. Put the file back, or "
                f"start over with --fresh.",
                where=str(folder / JOURNAL),
            )
        journal.add(_HEADER, Header, header)
    elif (begun := journal.find(_HEADER, Header)) != header:
        raise UsageError(
            f"going on with the run at {folder}: expected steps of this recipe, target and "
            f"version, got those of {_difference(begun, header)}. Start over with --fresh, or "
            f"use another --out.",
            where=str(folder),
        )
    return Work(folder=folder, journal=journal, torn=torn)


def _header(recipe: Recipe, target: Target) -> Header:
    versions = {name: metadata.version(name) for name in ("torch", "onnxruntime")}
    return Header(
        recipe_sha256=recipe_hash(recipe),
        target_sha256=target_hash(target),
        versions={"edgeprune": edgeprune.__version__, **versions},
    )


def _difference(begun: Header | None, now: Header) -> str:
    if begun is None or begun.recipe_sha256 != now.recipe_sha256:
        return "another recipe (or of files that it names)"
    if begun.target_sha256 != now.target_sha256:
        return "another target"
    spelled = ", ".join(f"{name} {version}" for name, version in begun.versions.items())
    return f"other versions ({spelled})"


def _is_ours(path: Path) -> bool:
    """Files of a run, and the hidden folders in which an interrupted export was growing."""
    return path.name in _OURS or path.name.startswith(tuple(f".{name}-" for name in _MODELS))


def _require_ours(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        got = "a link" if folder.is_symlink() else "a file"
    elif folder.is_dir() and (foreign := [p.name for p in folder.iterdir() if not _is_ours(p)]):
        got = f"one with {sorted(foreign)[0]!r} in it"
    else:
        return
    raise UsageError(
        f"working at {folder}: expected nothing there, or the work of a run, got {got}. "
        f"Choose another --out.",
        where=str(folder),
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system gives it back when the process ends, however it ends."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise EnvironmentFailed(
                f"working at {folder}: expected no other run there, got one at work (process "
                f"{holder}). Wait for it, or use another --out.",
                where=str(folder),
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    """Remove the steps of an earlier run; its journal goes last: a cut leaves it readable."""
    for path in folder.iterdir():
        if path.name in (_LOCK, JOURNAL, "replaced"):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / JOURNAL).unlink(missing_ok=True)
