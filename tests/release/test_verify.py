"""A bundle is verified as what was sealed: every file, the plan, the outputs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import UsageError
from edgeprune.gates.parity import ParityRecord, write_parity
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
    report = Report(
        dense=Figures(params=4, macs=4), pruned=Figures(params=4, macs=4), verdicts=(row,)
    )
    return seal(out, report, Provenance(target="local", versions={}, test_reads=0))


def _outcomes(found):
    return {verdict.gate: verdict.outcome for verdict in found.verdicts}


def test_a_bundle_as_it_was_made_verifies_as_what_it_is(bundle):
    """Nothing changed: verified, with the exit code that its own gates had."""
    found = verify(bundle.path)

    assert _outcomes(found) == {"files": "pass", "parity": "pass"}
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

    assert _outcomes(verify(bundle.path)) == {"files": "fail", "parity": "fail"}


def test_one_damage_does_not_hide_another(bundle):
    """A model that cannot be read is a failed parity, and the other files are still compared."""
    (bundle.path / "model.onnx").write_bytes(b"")
    (bundle.path / "summary.md").unlink()

    found = verify(bundle.path)

    assert _outcomes(found) == {"files": "fail", "parity": "fail"}
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
