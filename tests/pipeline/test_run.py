"""A whole run, in a process of its own, from a recipe to a judged bundle."""

from __future__ import annotations

import hashlib
import json
import shutil

import jsonschema
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import edgeprune
from edgeprune.errors import ProofFailed, UsageError
from edgeprune.gates.parity import read_parity
from edgeprune.pipeline import round as one_round
from edgeprune.pipeline.run import run
from edgeprune.planning.plan import read_plan
from edgeprune.recipe.schema import load_recipe
from edgeprune.release.report import published_schema

FILES = {
    "graph.json",
    "junit.xml",
    "manifest.json",
    "model.onnx",
    "parity.npz",
    "plan.json",
    "report.html",
    "report.json",
    "summary.md",
    "weights.safetensors",
}


class Recorder:
    def __init__(self):
        self.stages, self.notes = [], []

    def stage(self, name):
        self.stages.append(name)

    def step(self, done, total, text):
        pass

    def note(self, text):
        self.notes.append(text)


def _session(path):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _report(folder):
    return json.loads((folder / "report.json").read_text())


def test_a_run_passes_and_says_nothing_by_itself(finished):
    """Exit code 0; a library prints nothing and, with warnings as errors, warns of nothing."""
    assert (finished / "printed.txt").read_text() == ""
    assert (finished / "exit_code.txt").read_text() == "0"


def test_a_bundle_holds_every_file_with_its_hash(finished):
    """The files of DESIGN section 5, each as the manifest says."""
    manifest = json.loads((finished / "out" / "manifest.json").read_text())

    assert {path.name for path in (finished / "out").iterdir()} == FILES
    assert {entry["name"] for entry in manifest["files"]} == FILES - {"manifest.json"}
    for entry in manifest["files"]:
        content = (finished / "out" / entry["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]


def test_the_report_fits_its_schema_and_its_figures_hold(finished):
    """Valid by the published schema; two rounds, proved, accepted; smaller and every gate met."""
    report = _report(finished / "out")

    jsonschema.validate(report, json.loads(published_schema()))
    assert [r["accepted"] for r in report["rounds"]] == [True, True]
    assert all(r["proof"]["error"] <= 1e-4 < r["proof"]["change"] for r in report["rounds"])
    assert all(r["proof"]["control"] > 1e-2 for r in report["rounds"])
    assert report["pruned"]["params"] < 0.6 * report["dense"]["params"]
    assert report["pruned"]["macs"] < 0.6 * report["dense"]["macs"]
    assert report["dense"]["accuracy"] > 0.9
    assert report["speedup"]["pairs"] == 2
    gates = {verdict["gate"]: verdict["outcome"] for verdict in report["verdicts"]}
    assert gates == dict.fromkeys(("budget", "accuracy", "size_ratio", "parity"), "pass")


def test_test_data_is_read_once_and_the_manifest_says_so(finished):
    """One full pass over the test split in the whole run, for both models."""
    passes = (finished / "passes.txt").read_text().split()
    made_from = json.loads((finished / "out" / "manifest.json").read_text())["made_from"]

    assert passes.count("test") == made_from["test_reads"] == 1
    assert passes.count("validation") > 1
    assert made_from["seeds"]["run"] == 0
    assert torch.__version__.startswith(made_from["versions"]["torch"])


def test_reported_accuracy_is_that_of_the_delivered_file(finished):
    """ONNX Runtime on the test images, counted here by hand, gives the report's number."""
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 4, 512)
    images = rng.normal(size=(512, 1, 8, 8)).astype(np.float32)
    rows, columns = np.mgrid[:8, :8]
    phases = rng.uniform(0, 2 * np.pi, 512)
    for image, target, phase in zip(images, targets, phases, strict=True):
        along = np.cos(np.pi / 4 * target) * columns + np.sin(np.pi / 4 * target) * rows
        image[0] = 0.5 * image[0] + np.cos(np.pi / 2 * along + phase)
    session = _session(finished / "out" / "model.onnx")

    scores = session.run(None, {session.get_inputs()[0].name: images})[0]

    accuracy = float((scores.argmax(axis=1) == targets).mean())
    assert accuracy == pytest.approx(_report(finished / "out")["pruned"]["accuracy"])


def test_load_gives_the_model_back(finished):
    """edgeprune.load(bundle) computes what model.onnx computes, and what torch computed then."""
    model = edgeprune.load(finished / "out")
    session = _session(finished / "out" / "model.onnx")
    record = read_parity(finished / "out" / "parity.npz")
    (x,) = record.inputs.values()

    with torch.no_grad():
        got = model(torch.tensor(x)).numpy()

    np.testing.assert_array_equal(got, next(iter(record.outputs.values())))
    onnx_scores = session.run(None, dict(record.inputs))[0]
    assert np.abs(got - onnx_scores).max() / got.std() <= 1e-4
    assert len(x) == 32


def test_the_plan_leads_from_the_dense_model_to_the_delivered_one(finished):
    """Replaying plan.json on the user's model gives the delivered shapes."""
    plan = read_plan((finished / "out" / "plan.json").read_text())
    masks = plan.keep_mask()

    for name, tensor in edgeprune.load(finished / "out").state_dict().items():
        mask = masks[name]
        kept = [mask.any(axis=tuple(set(range(mask.ndim)) - {d})).sum() for d in range(mask.ndim)]
        assert list(tensor.shape) == kept, name
    widths = {group.name: (group.width, len(group.keep)) for group in plan.groups}
    assert sorted(widths.values()) == [(16, 8), (24, 12)]


def test_both_files_say_where_they_come_from(finished):
    """Plan, recipe and target are in the metadata of the delivered and of the dense file."""
    for path in (finished / "out" / "model.onnx", finished / "out.work" / "dense.onnx"):
        written = {p.key: p.value for p in onnx.load(path).metadata_props}
        plan = read_plan((finished / "out" / "plan.json").read_text())
        assert written["edgeprune.plan_sha256"] == plan.fingerprint
        assert written["edgeprune.target"] == "local"
        assert written["edgeprune.version"] == edgeprune.__version__


def test_dense_and_pruned_file_have_one_interface(finished):
    """Names, dtypes and dynamic axes agree, so either can be put into the other's place."""
    interfaces = []
    for path in (finished / "out" / "model.onnx", finished / "out.work" / "dense.onnx"):
        session = _session(path)
        nodes = [*session.get_inputs(), *session.get_outputs()]
        interfaces.append([(node.name, node.type, node.shape) for node in nodes])

    assert interfaces[0] == interfaces[1]
    assert interfaces[0][0][2] == ["batch", 1, 8, 8]


def test_a_finished_run_is_reported_and_not_run_again(finished):
    """The same recipe and target: the bundle comes back and no model is loaded."""
    recorder = Recorder()
    before = (finished / "passes.txt").read_text()

    bundle = run(load_recipe(finished / "recipe.toml"), out=finished / "out", progress=recorder)

    assert bundle.exit_code == 0
    assert recorder.stages == []
    assert "nothing was run again" in recorder.notes[0]
    assert (finished / "passes.txt").read_text() == before


def test_another_recipe_asks_for_fresh(finished):
    """A changed key is refused with the flag that would help, and the bundle stays."""
    changed = finished / "changed.toml"
    changed.write_text((finished / "recipe.toml").read_text().replace("rounds = 2", "rounds = 3"))

    with pytest.raises(UsageError, match=r"another recipe\. Use --fresh"):
        run(load_recipe(changed), out=finished / "out")

    assert {path.name for path in (finished / "out").iterdir()} == FILES


def _append(path):
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: (out / "model.onnx").unlink(), r"model\.onnx is missing"),
        (
            lambda out: _append(out / "model.onnx"),
            r"model\.onnx is changed \(\d+ bytes when it was made, \d+ now\)",
        ),
        (lambda out: (out / "notes.txt").write_text("mine"), r"notes\.txt is new"),
    ],
)
def test_a_finished_bundle_is_checked_before_it_is_reported_again(
    finished, tmp_path, damage, words
):
    """A verdict about files that are not those of the manifest is not repeated: usage error 2."""
    out = shutil.copytree(finished / "out", tmp_path / "out")
    damage(out)

    with pytest.raises(UsageError, match=rf"{words}\. Use --fresh") as caught:
        run(load_recipe(finished / "recipe.toml"), out=out)
    assert caught.value.exit_code == 2


@pytest.fixture(scope="module")
def refused(tmp_path_factory, trained, write_task):
    """A run whose guard refuses a round, for a device that is not within reach; and its notes."""
    folder = tmp_path_factory.mktemp("refused")
    changes = {
        "= 0.5 }": "= 0.2 }",
        "epochs = 1.0": "epochs = 0.0",
        "rounds = 2": "rounds = 4",
        "[gates]": "[gates]\nspeedup = 2.0",
    }
    recipe = load_recipe(write_task(folder, trained, changes))
    (folder / "board.toml").write_text('status = "facts"\nsources = ["a data sheet"]\n')
    recorder = Recorder()
    target = str(folder / "board.toml")
    bundle = run(recipe, out=folder / "out", target=target, progress=recorder)
    return bundle, recorder


def _verdict(bundle, gate):
    return next(verdict for verdict in bundle.report.verdicts if verdict.gate == gate)


def test_a_round_that_loses_too_much_is_undone_and_the_build_fails(refused):
    """The last accepted model is delivered, exit code 1, and bundle and report say why."""
    bundle, recorder = refused

    accepted = [r.accepted for r in bundle.report.rounds if r.proof]
    verdict = _verdict(bundle, "budget")
    assert accepted[0] is True
    assert accepted[1:]
    assert not any(accepted[1:])
    assert (bundle.exit_code, bundle.outcome, verdict.outcome) == (1, "fail", "fail")
    assert verdict.observed > verdict.limit
    assert "more than max_accuracy_drop 0.05" in verdict.why
    assert (
        bundle.report.pruned.params
        == [r.params for r in bundle.report.rounds if r.accepted and r.params][-1]
    )
    assert json.loads((bundle.path / "manifest.json").read_text())["outcome"] == "fail"
    assert any("undone" in note for note in recorder.notes)


def test_a_target_that_is_not_reached_gets_no_time(refused):
    """A profile of facts: no latency in the report, the speedup inconclusive, and it is said."""
    bundle, recorder = refused

    assert _verdict(bundle, "speedup").outcome == "inconclusive"
    assert bundle.report.speedup is None
    assert bundle.report.pruned.latency_ms is None
    assert any("target 'board' is not reached" in note for note in recorder.notes)


def test_a_failed_proof_delivers_nothing_but_the_report(task, tmp_path, monkeypatch):
    """ProofFailed comes through with exit code 70, and the bundle holds no model."""

    def wrong(analysis, plan, pruned, seed):
        raise ProofFailed("proof at conv: expected the same, got another.", where="conv")

    monkeypatch.setattr(one_round, "prove", wrong)

    with pytest.raises(ProofFailed) as caught:
        run(load_recipe(task()), out=tmp_path / "out")

    assert caught.value.exit_code == 70
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"junit.xml", "manifest.json", "report.html", "report.json", "summary.md"}
    report = _report(tmp_path / "out")
    assert report["pruned"] is None
    assert report["verdicts"][0]["gate"] == "proof"


def test_a_place_that_holds_something_else_is_refused_first(task, tmp_path):
    """No work is done, and nothing there is touched."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")

    with pytest.raises(UsageError, match="another folder"):
        run(load_recipe(task()), out=tmp_path / "out", fresh=True)

    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
