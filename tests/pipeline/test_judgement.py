"""Verdicts of a run: what is unknown is inconclusive, what was not done is a failure."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.errors import DataError
from edgeprune.gates.judging import judge
from edgeprune.gates.prediction import Predictions
from edgeprune.measure.machine import machine_state
from edgeprune.measure.samples import PairedSamples, Samples
from edgeprune.measure.settings import Settings
from edgeprune.pipeline import judgement
from edgeprune.pipeline.budget import budget_verdict
from edgeprune.pipeline.judgement import accuracy_evidence, predict_both
from edgeprune.pipeline.progress import Silent
from edgeprune.pipeline.run import run
from edgeprune.recipe.schema import load_recipe

LEAST = Settings(
    runs=11, least_runs=11, seconds=0.1, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
)
DEVICE = """
status = "generic"
[budget]
p50_ms = 1.5
p90_ms = 1.5
first_ms = 5.0
load_ms = 2.0
peak_rss_mib = 64.0
model_mib = 1e3
regression_pct = 100.0
accuracy_min_ratio = 0.01
"""


def test_nothing_to_remove_is_a_failure_not_a_success(task, prepared, rounds_of):
    """Widths of 16 and 24 at multiples of 64 cannot shrink: the budget fails with the reason."""
    job = prepared(task({"multiple = 4": "multiple = 64"}))

    pruning = rounds_of(job)

    verdict = budget_verdict(job, pruning, None)
    assert [(r.proof, r.accepted) for r in pruning.rounds] == [(None, True)] * 2
    assert (verdict.outcome, verdict.observed) == ("fail", 1.0)
    assert "nothing can be removed" in verdict.why


def test_keeping_everything_on_request_is_no_failure(task, prepared, rounds_of):
    """keep_fraction = 1 asks for nothing to go."""
    job = prepared(task({"= 0.5 }": "= 1.0 }"}))

    assert budget_verdict(job, rounds_of(job), None).outcome == "pass"


def test_without_labels_the_guard_and_the_gate_say_so(task, prepared, rounds_of):
    """Rounds are accepted with that reason, the teacher still teaches, the gate is inconclusive."""
    job = prepared(task({"data.py:load": "data.py:unlabelled", "rounds = 2": "rounds = 1"}))
    nothing = Predictions(names=("y",), outputs=np.zeros((3, 4)), targets=None, samples=3)

    (record,) = rounds_of(job).rounds
    (verdict,) = judge(accuracy_evidence(job, nothing, nothing))

    assert job.dense_accuracy is None
    assert "no labels" in record.why
    assert verdict.outcome == "inconclusive"


def test_the_devices_own_limits_are_judged_beside_the_recipes(task, tmp_path, monkeypatch):
    """Each key of a profile's budget has a verdict of its own, by its own figure.

    The times are scripted: 2 ms against 1 ms, 3 ms to load, 4 ms to begin, 50 MiB.
    """
    monkeypatch.setattr(judgement, "measure_pairs", _scripted)
    recipe = task({"epochs = 1.0": "epochs = 0.2", "drop = 0.05\nbudget": "drop = 1.0\nbudget"})
    (recipe.parent / "device.toml").write_text(DEVICE)

    bundle = run(
        load_recipe(recipe),
        out=tmp_path / "out",
        target=str(recipe.parent / "device.toml"),
        measuring=LEAST,
    )

    found = {v.gate: v for v in bundle.report.verdicts}
    passed = ("latency", "speedup", "process_first", "process_memory", "size", "accuracy_ratio")
    assert {gate: found[gate].outcome for gate in passed} == dict.fromkeys(passed, "pass")
    assert found["process_load"].outcome == "fail"
    assert found["latency_p90"].outcome == "inconclusive"  # 11 runs a process carry no p90
    assert found["speedup"].limit == 0.5
    figures = {gate: found[gate].observed for gate in ("process_load", "process_first", "latency")}
    assert figures == pytest.approx({"process_load": 3, "process_first": 4, "latency": 1})
    assert bundle.exit_code == 1


def _scripted(baseline, candidate, target, settings, *, progress):
    def process(ms):
        return Samples(
            model_sha256="0",
            times_ms=(ms,) * 11,
            load_ms=3.0,
            first_ms=4.0,
            peak_rss_mib=50.0,
            onnxruntime="0",
        )

    state = machine_state()
    return PairedSamples(
        baseline=(process(2.0),) * 3,
        candidate=(process(1.0),) * 3,
        baseline_first=(True, False, True),
        settings=settings,
        threads=1,
        batch=1,
        before=state,
        after=state,
    )


def test_both_models_see_one_pass_in_order(monkeypatch):
    """Seven batches in chunks: each batch is asked for once, each model gets all, in order."""
    asked, seen = [], {"dense": [], "pruned": []}

    def batches():
        for index in range(7):
            asked.append(index)
            yield np.full((300, 2), index, np.float32), np.full(300, index)

    def fake(path, chunk):
        seen[path] += [int(inputs[0, 0]) for inputs, _ in chunk]
        return Predictions(
            names=("y",),
            outputs=np.concatenate([inputs for inputs, _ in chunk]),
            targets=np.concatenate([target for _, target in chunk]),
            samples=sum(len(target) for _, target in chunk),
        )

    monkeypatch.setattr(judgement, "predict", fake)

    dense, pruned = predict_both("dense", "pruned", batches(), Silent())

    assert asked == seen["dense"] == seen["pruned"] == list(range(7))
    assert dense.samples == pruned.samples == 2100
    np.testing.assert_array_equal(dense.outputs[:, 0], dense.targets)


def test_an_empty_test_split_is_refused():
    """No sample: nothing can be said, and the message names the split."""
    with pytest.raises(DataError, match="at the test split: expected at least one batch"):
        predict_both("dense", "pruned", [], Silent())
