"""Bundles: whole or not at all, every byte accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from report_example import report, verdict

from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.release.bundle import (
    check_destination,
    is_bundle,
    open_bundle,
    seal,
    staging_folder,
    work_folder,
)
from edgeprune.release.differences import differences
from edgeprune.release.manifest import Provenance

MADE_FROM = Provenance(
    recipe_sha256="0" * 64, seeds={"run": 7}, target="local", versions={"onnx": "1"}, test_reads=1
)


def sealed(out: Path, content: bytes = b"onnx", outcome: str = "pass"):
    """A bundle at `out` with a model, its plan and record, and a file in a folder of its own."""
    staging = staging_folder(out)
    (staging / "deep").mkdir(parents=True, exist_ok=True)
    (staging / "model.onnx").write_bytes(content)
    (staging / "plan.json").write_bytes(b"plan")
    (staging / "parity.npz").write_bytes(b"parity")
    (staging / "deep" / "file.txt").write_text("deep")
    return seal(out, report(verdict("latency", outcome)), MADE_FROM)


def test_the_manifest_accounts_for_every_file(tmp_path):
    """Each file but the manifest is listed with its size and an SHA-256 that hashlib confirms."""
    out = sealed(tmp_path / "out").path
    listed = {
        entry["name"]: entry for entry in json.loads((out / "manifest.json").read_text())["files"]
    }
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}

    assert found - set(listed) == {"manifest.json"}
    assert set(listed) - found == set()
    assert {
        "model.onnx",
        "deep/file.txt",
        "report.html",
        "report.json",
        "junit.xml",
        "summary.md",
    } <= found
    for name, entry in listed.items():
        content = (out / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["size_bytes"] == len(content)


def test_the_manifest_says_what_it_was_made_from(tmp_path):
    """Recipe hash, seeds, target, versions, verdicts and test reads stand in the manifest."""
    written = json.loads((sealed(tmp_path / "out").path / "manifest.json").read_text())

    assert written["outcome"] == "pass"
    assert written["verdicts"][0]["gate"] == "latency"
    assert written["made_from"] == MADE_FROM.model_dump()


def test_a_bundle_reads_back(tmp_path):
    """open_bundle gives what seal returned."""
    made = sealed(tmp_path / "out", outcome="fail")
    opened = open_bundle(tmp_path / "out")

    assert opened == made
    assert opened.exit_code == 1


def test_nothing_is_at_the_place_before_the_end(tmp_path, monkeypatch):
    """When writing fails half way, the place holds what it held before, and the work is kept."""
    out = tmp_path / "out"
    sealed(out, b"first")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeprune.release.bundle.make_durable", full)
    with pytest.raises(EnvironmentFailed, match="No space left"):
        sealed(out, b"second")

    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert (staging_folder(out) / "model.onnx").read_bytes() == b"second"


def test_a_failed_rename_puts_the_old_bundle_back(tmp_path, monkeypatch):
    """If the last rename fails, the bundle that was there before is there again."""
    out = tmp_path / "out"
    sealed(out, b"first")
    rename = Path.rename

    def fails(self, target):
        if self == staging_folder(out):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(EnvironmentFailed, match="Input/output"):
        sealed(out, b"second")

    assert (out / "model.onnx").read_bytes() == b"first"


def test_a_bundle_of_ours_is_replaced_whole(tmp_path):
    """A second bundle leaves no file of the first."""
    out = tmp_path / "out"
    sealed(out, b"first")
    (out / "stray.txt").write_text("from the first")
    sealed(out, b"second")

    assert (out / "model.onnx").read_bytes() == b"second"
    assert not (out / "stray.txt").exists()
    assert [p.name for p in work_folder(out).iterdir()] == []


def test_what_is_not_ours_is_never_touched(tmp_path):
    """A folder with other files, a file, and a look-alike manifest are refused and left alone."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"tool": "other"}')
    file = tmp_path / "file"
    file.write_text("text")
    for place in (folder, file):
        with pytest.raises(UsageError, match="Choose another --out"):
            check_destination(place)
        with pytest.raises(UsageError, match="Choose another --out"):
            sealed(place)

    assert (folder / "manifest.json").read_text() == '{"tool": "other"}'
    assert file.read_text() == "text"


def test_an_empty_or_absent_place_is_fine(tmp_path):
    """An empty folder and a path that does not exist are accepted."""
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        check_destination(tmp_path / name)
        assert sealed(tmp_path / name).path.is_dir()
        assert is_bundle(tmp_path / name)


@pytest.mark.parametrize("name", ["manifest.json", "report.json"])
def test_a_damaged_bundle_is_refused(tmp_path, name):
    """A bundle without its manifest or report, or with junk in one, is not opened."""
    out = sealed(tmp_path / "out").path
    (out / name).write_text('{"schema": 9}')
    with pytest.raises(UsageError, match="of this version"):
        open_bundle(out)
    (out / name).unlink()
    with pytest.raises(UsageError, match=f"expected {name}"):
        open_bundle(out)


def test_a_failed_run_delivers_only_its_report(tmp_path):
    """With nothing staged, the bundle holds the report's formats and the manifest, and failed."""
    failed = report(verdict("proof", "fail")).model_copy(update={"pruned": None})
    bundle = seal(tmp_path / "out", failed, MADE_FROM)

    assert bundle.outcome == "fail"
    assert {p.name for p in bundle.path.iterdir()} == {
        "report.html",
        "report.json",
        "junit.xml",
        "summary.md",
        "manifest.json",
    }


@pytest.mark.parametrize("below", ["x", "deep/x", "deep/../x", "deep"])
def test_a_place_inside_a_bundle_is_refused(tmp_path, below):
    """A bundle within a bundle would spoil the outer one, through a link to it as well."""
    out = sealed(tmp_path / "out").path
    (tmp_path / "link").symlink_to(out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for place in (out / below, tmp_path / "link" / below):
        with pytest.raises(UsageError, match=r"outside of every finished bundle.*another --out"):
            check_destination(place)
        with pytest.raises(UsageError, match="inside that at"):
            seal(place, report(), MADE_FROM)

    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_the_first_file_that_differs_is_named(tmp_path):
    """Missing, changed, new and linked files are found, hashes included; a whole bundle has none.

    The changed file keeps its size.
    """
    bundle = sealed(tmp_path / "out")
    model = bundle.path / "model.onnx"

    assert differences(bundle) == ()
    model.write_bytes(b"oNNx")
    assert differences(bundle)[0].startswith("model.onnx is changed")
    model.unlink()
    assert differences(bundle)[0].startswith("model.onnx is missing")
    (tmp_path / "elsewhere").write_bytes(b"onnx")
    model.symlink_to(tmp_path / "elsewhere")
    assert differences(bundle)[0].startswith("model.onnx is a link")
    (bundle.path / "deep" / "notes.txt").write_text("mine")
    assert differences(bundle)[0].startswith("deep/notes.txt is new")
    assert differences(bundle)[1].startswith("model.onnx is a link")
    others = bundle.manifest.model_copy(update={"verdicts": ()})
    (bundle.path / "deep" / "notes.txt").unlink()
    model.unlink()
    model.write_bytes(b"onnx")
    assert "other verdicts" in differences(dataclasses.replace(bundle, manifest=others))[-1]
