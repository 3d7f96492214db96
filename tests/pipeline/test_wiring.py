"""What a run must not be able to leave out: proofs, fresh samples, seeds, calibration, counting."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from edgeprune.errors import ProofFailed, UsageError
from edgeprune.measure.settings import Settings
from edgeprune.pipeline import round as one_round
from edgeprune.pipeline import run as whole_run
from edgeprune.pipeline.round import (
    judge_accuracy,
    recovery_settings,
    repair_,
    request_of,
)
from edgeprune.pipeline.run import run
from edgeprune.planning.plan import plan
from edgeprune.recipe.schema import load_recipe, recipe_hash
from edgeprune.scoring.scores import score

LEAST = Settings(
    runs=11, least_runs=11, seconds=0.1, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
)
QUICK = {"epochs = 1.0": "epochs = 0.0", "drop = 0.05\nbudget": "drop = 1.0\nbudget"}


def _run(recipe, **options):
    return run(load_recipe(recipe), out=recipe.parent / "out", measuring=LEAST, **options)


def test_a_wrong_removal_stops_the_run(task, monkeypatch):
    """A shrunk model with one weight changed fails its proof: nothing is trained or delivered."""
    shrink = one_round.shrink

    def wrong(analysis, plan):
        small = shrink(analysis, plan)
        with torch.no_grad():
            next(p for p in small.parameters() if p.ndim == 4)[0, 0, 0, 0] += 0.5
        return small

    monkeypatch.setattr(one_round, "shrink", wrong)
    recipe = task(QUICK)

    with pytest.raises(ProofFailed, match="proof"):
        _run(recipe)
    assert not (recipe.parent / "out" / "model.onnx").exists()
    with pytest.raises(ProofFailed):  # and again: a report of a failure is no finished build
        _run(recipe)


def test_a_wrong_sum_of_the_rounds_stops_the_run(task, monkeypatch):
    """A plan that does not say what the delivered model lacks fails the proof of the whole."""
    prune = whole_run.prune_in_rounds

    def wrong(job, *others):
        another = plan(job.dense, score(job.dense), keep_fraction=0.25, multiple=4)
        return dataclasses.replace(prune(job, *others), plan=another)

    monkeypatch.setattr(whole_run, "prune_in_rounds", wrong)
    recipe = task(QUICK)

    with pytest.raises(ProofFailed, match="whole plan"):
        _run(recipe)
    assert not (recipe.parent / "out" / "model.onnx").exists()


def test_a_failed_proof_leaves_a_good_bundle_where_it_is(task, monkeypatch):
    """--fresh and then a failure: the build of before stays, the report lies in the work folder."""
    recipe = task(QUICK)
    good = _run(recipe)
    before = (good.path / "model.onnx").read_bytes()

    def wrong(*args, **options):
        raise ProofFailed("proof at conv: expected the same, got another.", where="conv")

    monkeypatch.setattr(one_round, "prove", wrong)
    with pytest.raises(ProofFailed):
        _run(recipe, fresh=True)

    assert (good.path / "model.onnx").read_bytes() == before
    report = json.loads((recipe.parent / "out.work" / "failed" / "report.json").read_text())
    assert (report["pruned"], report["verdicts"][0]["gate"]) == (None, "proof")
    monkeypatch.undo()
    assert _run(recipe, fresh=True).report.pruned is not None


def test_each_round_is_scored_on_samples_that_none_saw_before(task, rounds_of, monkeypatch):
    """Two rounds of 64 samples by taylor: no image is in both."""
    seen = []

    def watched(analysis, criterion, *, batches, **options):
        kept = list(batches)
        seen.append({image.tobytes() for inputs, _ in kept for image in inputs})
        return score(analysis, criterion, batches=kept, **options)

    monkeypatch.setattr(one_round, "score", watched)
    rounds_of(task(QUICK | {'criterion = "l1"': 'criterion = "taylor"\nscore_samples = 64'}))

    assert [len(images) for images in seen[-2:]] == [64, 64]
    first, second = [images for images in seen if images != seen[0]][-2:]
    assert not first & second


def test_each_round_trains_with_a_seed_of_its_own(task, prepared):
    """The run's seed plus the round's number, as the manifest says."""
    job = prepared(task({"multiple = 4": "multiple = 4\nseed = 7"}))

    assert [recovery_settings(job, 1.0, number).seed for number in (1, 2)] == [8, 9]


def test_the_targets_widths_reach_the_plan(task, prepared):
    """channel_multiple and depthwise_multiple of the profile; [prune] multiple wins over one."""
    recipe = task({"multiple = 4\n": ""})
    (recipe.parent / "device.toml").write_text(
        'status = "generic"\n[pruning]\nchannel_multiple = 2\ndepthwise_multiple = 8\n'
    )
    (recipe.parent / "recipe.toml").write_text(
        recipe.read_text() + '[target]\nname = "device.toml"\n'
    )

    request = request_of(prepared(recipe), 0.5)

    assert (request.multiple, request.depthwise_multiple) == (2, 8)


def test_repair_reads_training_inputs_and_never_validation(task, prepared, monkeypatch):
    """Without a calibration split the refitted weights come from the training split's inputs."""
    job = prepared(task({"samples = 0": "samples = 64"}))

    class Seen(Exception):
        pass

    def watched(before, plan, small, inputs, **options):
        raise Seen(next(iter(inputs)))

    monkeypatch.setattr(one_round, "refit", watched)
    with pytest.raises(Seen) as caught:
        repair_(job, job.dense, None, None, None)

    np.testing.assert_array_equal(caught.value.args[0], next(iter(job.data.train))[0])


@pytest.mark.parametrize("samples", [0, 64])
def test_the_report_tells_what_repair_did(task, rounds_of, samples):
    """Every round's refitted layers, and the outputs' error, which falls; null without repair."""
    found = rounds_of(task(QUICK | {"samples = 0": f"samples = {samples}"})).rounds

    if not samples:
        assert [row.repair for row in found] == [None, None]
        return
    assert all(0 < row.repair.refitted <= row.repair.layers for row in found)
    assert all(row.repair.error_after < row.repair.error_before for row in found)
    assert all(row.repair.kept and row.accuracy.repaired is not None for row in found)


def test_a_drop_equal_to_the_limit_is_within_it(task, prepared):
    """0.91 - 0.9 is more than 0.01 in binary, and not in what was meant; NaN is never within."""
    job = dataclasses.replace(
        prepared(task({"drop = 0.05\nbudget": "drop = 0.01\nbudget"})), dense_accuracy=0.91
    )

    assert judge_accuracy(job, 0.9)[0]
    assert not judge_accuracy(job, 0.8999)[0]
    assert not judge_accuracy(job, float("nan"))[0]


def test_the_reading_of_the_test_split_is_written_down_before_it_begins(task):
    """When the split is asked for its first batch, the journal already says so."""
    recipe = task(QUICK)
    data = recipe.parent / "data.py"
    data.write_text(
        data.read_text().replace(
            "    def __iter__(self):\n",
            "    def __iter__(self):\n"
            "        here = Path(__file__).parent\n"
            '        if self.name == "test":\n'
            '            text = (here / "out.work" / "journal.jsonl").read_text()\n'
            '            (here / "seen.txt").write_text(text)\n',
        )
    )

    bundle = _run(recipe)

    steps = [
        json.loads(line)["step"] for line in (recipe.parent / "seen.txt").read_text().splitlines()
    ]
    assert steps[-1] == "reading of the test split 1"
    assert bundle.manifest.made_from.test_reads == 1


def test_a_bundle_is_of_the_files_that_were_read(task):
    """data.py is changed while the run works: the bundle says what it was made from, and the next
    run that it was made from something else."""
    recipe = task(QUICK)
    data = recipe.parent / "data.py"
    before = recipe_hash(load_recipe(recipe))
    data.write_text(data.read_text() + CHANGING)
    loaded = recipe_hash(load_recipe(recipe))

    bundle = _run(recipe)

    assert bundle.manifest.made_from.recipe_sha256 == loaded != before
    assert recipe_hash(load_recipe(recipe)) != loaded
    with pytest.raises(UsageError, match="another recipe"):
        _run(recipe)


def test_a_metric_that_is_no_number_on_a_collapsed_model_undoes_the_round(task, rounds_of):
    """A user's metric gives NaN once the model collapses: the moment has no figure, the guard does
    not accept it, and the run ends with a reason and not with an error."""
    recipe = task(
        {
            "data.py:load": "data.py:measured",
            "epochs = 1.0": "epochs = 0.0",
            "keep_fraction = 0.5": "keep_fraction = 0.2",
            "rounds = 2": "rounds = 1",
        }
    )
    data = recipe.parent / "data.py"
    data.write_text(data.read_text() + METRIC)

    pruning = rounds_of(recipe)

    assert pruning.rounds[0].accuracy.removed is None
    assert not pruning.rounds[0].accepted
    assert "third to be refused" in pruning.stopped


CHANGING = """

with Path(__file__).open("a") as file:
    file.write("# changed\\n")
"""

METRIC = """

def agreement(outputs, targets):
    right = float((outputs.argmax(1) == targets).mean())
    return right if right > 0.95 else float("nan")

def measured():
    data = load()
    return edgeprune.Data(
        train=data.train, validation=data.validation, test=data.test, metric=agreement
    )
"""


def test_only_seeds_that_were_used_are_in_the_manifest(task):
    """No final training, no seed for it."""
    seeds = _run(task(QUICK)).manifest.made_from.seeds

    assert set(seeds) == {"run", "measurement", "training of round 1", "training of round 2"}
