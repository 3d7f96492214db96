"""The journal of a run: every finished step and every measured decision, one line each.

A line is written, and on disk, before anything is built on what it says; after an interruption the
same command reads it back instead of doing or measuring again. Each line carries the SHA-256 of
itself and of all lines before it, so that an edited or mended file is noticed. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edgeprune.errors import UsageError
from edgeprune.release.bundle import make_durable

JOURNAL = "journal.jsonl"

Content = TypeVar("Content")


class Header(BaseModel):
    """What a run was started with; the first line. Another one cannot go on with its steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: int = Field(default=1, alias="schema")
    recipe_sha256: str
    target_sha256: str
    versions: dict[str, str]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    content: object
    chain: str


class Journal:
    """Steps by name, in the order they finished. A name may come once."""

    def __init__(self, path: Path, lines: list[_Line], intact_bytes: int) -> None:
        self._path = path
        self._lines = lines
        self._intact_bytes = intact_bytes

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the finished steps."""
        return tuple(line.step for line in self._lines)

    def find(self, step: str, kind: type[Content]) -> Content | None:
        """What a finished step wrote down; None if it has not been done.

        Raises UsageError when the line does not hold a `kind`.
        """
        for line in self._lines:
            if line.step == step:
                try:
                    return TypeAdapter(kind).validate_python(line.content)
                except ValidationError as error:
                    raise _damaged(self._path, f"step {step!r} with {error.title}") from error
        return None

    def add(self, step: str, kind: type[Content], content: Content) -> None:
        """Write down a finished step, durably: when this returns, a power cut does not undo it."""
        if step in self.steps:
            raise _damaged(self._path, f"step {step!r} twice")
        plain = TypeAdapter(kind).dump_python(content, mode="json", by_alias=True)
        line = _Line(step=step, content=plain, chain=_chain(self._last_chain, step, plain))
        data = (line.model_dump_json() + "\n").encode()
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            # What an interruption left of a line goes before the next one is written.
            os.ftruncate(handle, self._intact_bytes)
            os.lseek(handle, self._intact_bytes, os.SEEK_SET)
            written = 0
            while written < len(data):
                written += os.write(handle, data[written:])
            os.fsync(handle)
        finally:
            os.close(handle)
        if not self._intact_bytes:  # the file is new, and so is its name
            make_durable(self._path.parent)
        self._lines.append(line)
        self._intact_bytes += len(data)

    @property
    def _last_chain(self) -> str:
        return self._lines[-1].chain if self._lines else ""


def read_journal(path: Path) -> tuple[Journal, bool]:
    """The journal at `path` (empty if there is none), and whether its last line was cut short.

    A last line without its end is a step that did not finish: it is left out. Raises UsageError
    for any other line that is not as it was written.
    """
    data = path.read_bytes() if path.exists() else b""
    whole, _, rest = data.rpartition(b"\n")
    intact = data[: len(data) - len(rest)]
    lines: list[_Line] = []
    chain = ""
    for number, text in enumerate(whole.split(b"\n") if intact else [], start=1):
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as error:
            raise _damaged(path, f"something else in line {number}") from error
        chain = _chain(chain, line.step, line.content)
        if line.chain != chain:
            raise _damaged(path, f"another content in line {number}, step {line.step!r}")
        lines.append(line)
    return Journal(path, lines, len(intact)), bool(rest)


def _chain(before: str, step: str, content: object) -> str:
    text = json.dumps([before, step, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(path: Path, got: str) -> UsageError:
    return UsageError(
        f"going on with the run at {path}: expected the lines that the run wrote, got {got}. "
        f"Put the file back as it was, or start over with --fresh.",
        where=str(path),
    )
