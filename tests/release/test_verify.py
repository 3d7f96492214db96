"""A bundle is verified as what was sealed: every file, the plan, the outputs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import UsageError
from edgeprune.gates.parity import ParityRecord, write_parity
from edgeprune.planning.plan import Plan
from edgeprune.release.bundle import seal, staging_folder
from edgeprune.release.manifest import Provenance
from edgeprune.release.report import Figures, Report, VerdictRow
from edgeprune.release.verify import verify

WEIGHT = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


def _model(path, weight):
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        ports[:1],
        ports[1:],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )


@pytest.fixture(params=["pass", "fail"])
def bundle(tmp_path, request):
    """A sealed bundle of a matrix product, whose one gate passed or failed."""
    row = VerdictRow(gate="size", outcome=request.param, observed=1.0, limit=2.0)
    return _sealed(tmp_path / "out", row)


def _sealed(out, row, recorded=1.0):
    """A bundle with one verdict; the recorded outputs are the model's times `recorded`."""
    staging = staging_folder(out)
    staging.mkdir(parents=True)
    _model(staging / "model.onnx", WEIGHT)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    outputs = {"y": recorded * (x @ WEIGHT)}
    write_parity(staging / "parity.npz", ParityRecord(inputs={"x": x}, outputs=outputs))
    Plan(
        criterion="magnitude",
        allocation="uniform",
        keep_fraction=1.0,
        multiple=1,
        groups=(),
        axes=(),
        tensors=(),
    ).save(staging / "plan.json")
    report = Report(
        dense=Figures(params=4, macs=4), pruned=Figures(params=4, macs=4), verdicts=(row,)
    )
    return seal(out, report, Provenance(target="local", versions={}, test_reads=0))


def _outcomes(found):
    return {verdict.gate: verdict.outcome for verdict in found.verdicts}


def test_a_bundle_as_it_was_made_verifies_as_what_it_is(bundle):
    """Nothing changed: verified, with the exit code that its own gates had."""
    found = verify(bundle.path)

    assert _outcomes(found) == {"files": "pass", "plan": "pass", "parity": "pass"}
    assert found.outcome == "pass"
    assert found.exit_code == bundle.exit_code


@pytest.mark.parametrize("damage", ["changed", "missing", "new"])
def test_a_file_that_is_not_as_it_was_is_named(bundle, damage):
    """Changed, missing or new: exit code 1 and the file's name."""
    path = bundle.path / "summary.md"
    if damage == "changed":
        path.write_text("all is well")
    elif damage == "missing":
        path.unlink()
    else:
        path = bundle.path / "extra.bin"
        path.write_bytes(b"1")

    found = verify(bundle.path)

    assert (found.outcome, found.exit_code) == ("fail", 1)
    assert f"{path.name} is {damage}" in found.verdicts[0].why


def test_a_model_that_computes_otherwise_is_found_twice(bundle):
    """Another weight: the hash differs, and so do the outputs."""
    _model(bundle.path / "model.onnx", WEIGHT * 1.01)

    assert _outcomes(verify(bundle.path)) == {"files": "fail", "plan": "pass", "parity": "fail"}


def test_one_damage_does_not_hide_another(bundle):
    """A model that cannot be read is a failed parity, and the other files are still compared."""
    (bundle.path / "model.onnx").write_bytes(b"")
    (bundle.path / "summary.md").unlink()

    found = verify(bundle.path)

    assert _outcomes(found) == {"files": "fail", "plan": "pass", "parity": "fail"}
    assert "summary.md is missing" in found.verdicts[0].why


def test_a_verdict_that_was_edited_in_the_manifest_is_found(bundle):
    """The manifest cannot vouch for itself: its verdicts are compared with the report's."""
    path = bundle.path / "manifest.json"
    table = json.loads(path.read_text())
    table["verdicts"][0]["limit"] = 99.0
    path.write_text(json.dumps(table))

    assert "other verdicts" in verify(bundle.path).verdicts[0].why


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    """UsageError, before anything in it is read."""
    with pytest.raises(UsageError, match=r"expected manifest\.json"):
        verify(tmp_path)


def test_a_link_in_place_of_a_file_is_found(bundle, tmp_path):
    """The same content behind a link is another file tomorrow."""
    model = bundle.path / "model.onnx"
    model.rename(tmp_path / "elsewhere.onnx")
    model.symlink_to(tmp_path / "elsewhere.onnx")

    files = next(v for v in verify(bundle.path).verdicts if v.gate == "files")
    assert (files.outcome, "model.onnx is a link" in files.why) == ("fail", True)


@pytest.mark.parametrize(("limit", "outcome"), [(0.1, "pass"), (1e-4, "fail")])
def test_parity_is_held_to_the_limit_that_the_build_was_judged_by(tmp_path, limit, outcome):
    """Outputs 1 % off: fine for a build whose report allows a tenth, not for the usual limit."""
    row = VerdictRow(gate="parity", outcome="pass", observed=0.01, limit=limit)
    sealed = _sealed(tmp_path / "out", row, recorded=1.01)

    assert _outcomes(verify(sealed.path))["parity"] == outcome


def test_an_outcome_that_was_edited_in_the_manifest_is_found(bundle):
    """The manifest's overall outcome is held against the report's, as its verdicts are."""
    path = bundle.path / "manifest.json"
    table = json.loads(path.read_text())
    table["outcome"] = "inconclusive"
    path.write_text(json.dumps(table))

    found = verify(bundle.path)
    assert (found.exit_code, found.outcome) == (1, "fail")
    assert "manifest.json says inconclusive, report.json" in found.verdicts[0].why


@pytest.mark.parametrize("name", ["model.onnx", "parity.npz", "plan.json"])
def test_a_file_taken_out_of_folder_and_manifest_is_missed(bundle, name):
    """The report has a pruned model: a bundle without it, its plan or its record is not whole."""
    path = bundle.path / "manifest.json"
    table = json.loads(path.read_text())
    table["files"] = [entry for entry in table["files"] if entry["name"] != name]
    path.write_text(json.dumps(table))
    (bundle.path / name).unlink()

    found = verify(bundle.path)
    assert found.exit_code == 1
    assert f"{name} is missing, from the manifest as well" in found.verdicts[0].why


@pytest.mark.parametrize("kind", ["folder", "link to a file", "link to a folder", "dead link"])
def test_an_entry_that_is_no_file_is_found(bundle, tmp_path, kind):
    """An empty folder and a link have no hash, and are not what was sealed either."""
    extra = bundle.path / "extra"
    places = {"link to a file": bundle.path / "model.onnx", "link to a folder": tmp_path}
    if kind == "folder":
        extra.mkdir()
    else:
        extra.symlink_to(places.get(kind, tmp_path / "nothing"))

    found = verify(bundle.path)
    assert found.exit_code == 1
    assert f"extra is a {'new folder' if kind == 'folder' else 'link'}" in found.verdicts[0].why


def test_a_manifest_behind_a_link_is_found(bundle, tmp_path):
    """The manifest is in no list of files, and its place is looked at all the same."""
    (bundle.path / "manifest.json").rename(tmp_path / "m.json")
    (bundle.path / "manifest.json").symlink_to(tmp_path / "m.json")

    assert "manifest.json is a link" in verify(bundle.path).verdicts[0].why


def test_a_folder_that_holds_sealed_files_is_no_stranger(tmp_path):
    """Files in folders of their own, as an extension may write, are part of the bundle."""
    staging = staging_folder(tmp_path / "out")
    (staging / "a" / "b").mkdir(parents=True)
    (staging / "a" / "b" / "notes.txt").write_text("-")
    report = Report(dense=Figures(params=4, macs=4), pruned=None)
    sealed = seal(tmp_path / "out", report, Provenance(target="local", versions={}, test_reads=0))

    assert _outcomes(verify(sealed.path)) == {"files": "pass"}
