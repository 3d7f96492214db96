"""A finished folder: made beside its place, then renamed into it whole.

A run to `DIR` works in `DIR.work/`; the files of the bundle grow in `DIR.work/bundle/`. Whoever
finds `DIR` finds all of it. A bundle that is replaced lies in `DIR.work/replaced/` for the moment
between two renames, and nowhere half.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.gates.verdict import Outcome
from edgeprune.release.formats import report_formats
from edgeprune.release.manifest import MANIFEST, Manifest, Provenance, list_files
from edgeprune.release.report import Report

REPORT = "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A finished bundle on disk: its folder, report and manifest."""

    path: Path
    report: Report
    manifest: Manifest

    @property
    def outcome(self) -> Outcome:
        """pass, fail or inconclusive, over all gates."""
        return self.report.outcome

    @property
    def exit_code(self) -> int:
        """0 passed, 1 a gate failed, 3 inconclusive."""
        return self.report.exit_code


def work_folder(out: Path) -> Path:
    """`DIR.work` beside `DIR`: the run's journal and the growing bundle."""
    place = out.absolute()
    return place.with_name(f"{place.name}.work")


def staging_folder(out: Path) -> Path:
    """`DIR.work/bundle`: where the files of the bundle are written before it is sealed."""
    return work_folder(out) / "bundle"


def is_bundle(folder: Path) -> bool:
    """Whether a folder was made by edgeprune: its manifest says so."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        return Manifest.model_validate_json(text).tool == "edgeprune"
    except (OSError, ValueError):
        return False


def check_destination(out: Path) -> None:
    """Refuse a place that holds something which is not a bundle of ours; an empty folder is fine.

    A place inside a bundle is refused too: whatever lies there, that bundle would no longer be
    what its manifest says. Raises UsageError before any work is done.
    """
    # The real path, so that neither a link nor `..` hides the bundle; it never raises.
    around = [folder for folder in Path(os.path.realpath(out)).parents if is_bundle(folder)]
    if around:
        raise UsageError(
            f"writing the bundle at {out}: expected a place outside of every finished bundle, got "
            f"one inside that at {around[0]}. Choose another --out.",
            where=str(out),
        )
    if out.is_dir() and (is_bundle(out) or not any(out.iterdir())):
        return
    if out.exists() or out.is_symlink():
        raise UsageError(
            f"writing the bundle at {out}: expected nothing there, or a bundle of edgeprune, got "
            f"{'another folder' if out.is_dir() else 'a file'}. Choose another --out.",
            where=str(out),
        )


def open_bundle(path: Path) -> Bundle:
    """Read a finished bundle's manifest and report.

    Raises UsageError for a folder that is not a bundle, or whose report cannot be read.
    """
    texts = []
    for name in (MANIFEST, REPORT):
        try:
            texts.append((path / name).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"opening the bundle at {path}: expected {name}, got {error.strerror}. "
                f"Give the folder that a run has finished.",
                where=str(path / name),
            ) from error
    try:
        manifest = Manifest.model_validate_json(texts[0])
        report = Report.model_validate_json(texts[1])
    except ValidationError as error:
        raise UsageError(
            f"opening the bundle at {path}: expected a manifest and a report of this version, got "
            f"{error.error_count()} faults in {error.title}. Make the bundle again.",
            where=str(path),
        ) from error
    return Bundle(path=path, report=report, manifest=manifest)


def seal(out: Path, report: Report, made_from: Provenance) -> Bundle:
    """Add every report format and the manifest to the staged files, then put them at `out`.

    What lies in `staging_folder(out)` is delivered as it is (nothing, where a proof failed). A
    bundle that was at `out` is replaced in one rename; everything is on disk before that.
    Raises UsageError where `out` holds something else, EnvironmentFailed when the disk fails.
    """
    check_destination(out)
    staging = staging_folder(out)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        for known in report_formats():
            (staging / known.file).write_text(known.render(report), encoding="utf-8")
        manifest = Manifest(
            outcome=report.outcome,
            verdicts=report.verdicts,
            made_from=made_from,
            files=list_files(staging),
        )
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        make_durable(*staging.rglob("*"), staging)
        _put(staging, out)
    except OSError as error:
        raise EnvironmentFailed(
            f"writing the bundle at {out}: expected a disk that can be written, got {error}. "
            f"Free some space or choose another --out; the run's work is kept in {staging.parent}.",
            where=str(out),
        ) from error
    return Bundle(path=out, report=report, manifest=manifest)


def make_durable(*paths: Path) -> None:
    """Files' contents, or folders' names, on disk: a power cut does not undo them."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put(staging: Path, out: Path) -> None:
    """Rename `staging` to `out`; what was there goes aside first, and away afterwards."""
    old = work_folder(out) / "replaced"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    make_durable(out.absolute().parent)
    shutil.rmtree(old, ignore_errors=True)
