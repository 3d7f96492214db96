"""`manifest.json`: what a bundle holds, made from what, judged how."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeprune.gates.verdict import Outcome
from edgeprune.release.report import Row, VerdictRow

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


class FileEntry(Row):
    """One file of the bundle, its name relative to the bundle, with forward slashes."""

    name: str = Field(description="Path inside the bundle.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the content.")
    size_bytes: int = Field(ge=0, description="Bytes.")


class Provenance(Row):
    """What a bundle was made from."""

    recipe_sha256: str | None = Field(
        default=None, description="recipe_hash of the recipe; null: made without one."
    )
    seeds: dict[str, int] = Field(default_factory=dict, description="Every seed, by what it is of.")
    target: str = Field(description="Name of the target.")
    target_sha256: str | None = Field(
        default=None, description="SHA-256 of the target profile's values; null: made without one."
    )
    versions: dict[str, str] = Field(description="Versions of what took part, by package.")
    test_reads: int = Field(ge=0, description="How often the test split was read.")


class Manifest(Row):
    """What a bundle holds. The manifest itself is not in `files`."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="This schema.")
    tool: Literal["edgeprune"] = Field(default="edgeprune", description="What made it.")
    outcome: Outcome = Field(description="Overall: pass, fail or inconclusive.")
    verdicts: tuple[VerdictRow, ...] = Field(description="One a gate, as in report.json.")
    made_from: Provenance = Field(description="Recipe, seeds, target, versions.")
    files: tuple[FileEntry, ...] = Field(description="Every other file, by name.")

    def to_json(self) -> str:
        """The text of manifest.json, ending in a newline."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder` but the manifest, sorted by name."""
    entries = [
        FileEntry(name=name, sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != MANIFEST
    ]
    return tuple(sorted(entries, key=lambda entry: entry.name))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
