"""A dry run foretells what the run of the same recipe does and takes, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from edgeprune.errors import UsageError
from edgeprune.measure.settings import Settings
from edgeprune.pipeline import dry_run as module
from edgeprune.pipeline.dry_run import dry_run
from edgeprune.pipeline.rehearsal import Rehearsal
from edgeprune.recipe.schema import load_recipe

NORMAL = Settings()
UNTRAINED = {"epochs = 1.0": "epochs = 0.0", "drop = 0.05\nbudget": "drop = 1.0\nbudget"}
ELSEWHERE = 'status = "facts"\nsources = ["a data sheet"]\n'

# Its third layer reads 288 x 9 values: the matrix that refits it is larger than all weights.
WIDE = """
from torch import nn
import torch

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 288, 3, padding=1), nn.ReLU(),
        nn.Conv2d(288, 288, 3, padding=1), nn.ReLU(),
        nn.Conv2d(288, 288, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 288, 4),
    ), (torch.randn(2, 1, 8, 8),), {}
"""

GO = """
import resource, sys
from edgeprune.cli.app import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
"""


def _outlook(recipe, **options):
    return dry_run(load_recipe(recipe), **options)


def test_the_rounds_are_those_of_the_run_and_nothing_is_written(task, rounds_of):
    """By l1 without training, the foretold MACs and parameters are those of the run."""
    path = task(UNTRAINED | {"{ keep_fraction = 0.5 }": "{ macs_fraction = 0.4 }"})
    before = {p.name for p in path.parent.iterdir()} | {"passes.txt", "__pycache__"}

    outlook = _outlook(path)

    done = rounds_of(path)
    assert [(r.cost.params, r.cost.macs) for r in outlook.rounds] == [
        (r.params, r.macs) for r in done.rounds
    ]
    assert {p.name for p in path.parent.iterdir()} <= before


def test_only_what_the_recipe_asks_for_takes_time(task):
    """No epochs: no training. A target that is not this machine: no latency."""
    recipe = task(UNTRAINED)
    (recipe.parent / "board.toml").write_text(ELSEWHERE)

    outlook = _outlook(recipe, target=str(recipe.parent / "board.toml"))

    assert outlook.training_seconds == 0
    assert (outlook.measuring_seconds.least, outlook.measuring_seconds.most) == (0, 0)
    assert outlook.seconds.least == outlook.seconds.most == outlook.checking_seconds > 0


def test_estimates_are_counted_from_steps_that_were_timed(task, monkeypatch):
    """20 batches of an epoch; pairs of two processes, also for one to six candidates of a speedup.

    A later round's student is smaller, and its steps are shorter.
    """
    tried = Rehearsal(
        removal=1000.0,
        repair=500.0,
        training_step=1.0,
        validation=10.0,
        analysis=5.0,
        export=100.0,
        timed_process=2.0,
        timed_process_bytes=2**40,
    )
    monkeypatch.setattr(module, "rehearse", lambda *_: tried)

    plain = _outlook(task({"epochs = 1.0": "epochs = 3.0"}))
    searched = _outlook(task({"{ keep_fraction = 0.5 }": "{ speedup = 1.5 }"}))

    assert 60 < plain.training_seconds < 120
    rounds, end = 2 * (1000 + 500 + 3 * 10 + 2 * 5), 1000 + 10 + 2 * 5 + 2 * 100
    # And loading and scoring, which are timed as they happen.
    assert plain.checking_seconds == pytest.approx(rounds + end, abs=30)
    least, most = 2 * NORMAL.least_pairs * 2.0, 2 * NORMAL.most_pairs * 2.0
    assert (plain.measuring_seconds.least, plain.measuring_seconds.most) == (least, most)
    assert searched.measuring_seconds.least == 2 * least + 2 * 100
    assert searched.measuring_seconds.most == 7 * most + 6 * 2 * 100
    assert "measuring candidates" in searched.notes[0]
    assert plain.peak_memory_bytes > 2**40


def test_a_speedup_is_refused_where_the_run_refuses_it(task):
    """No clock here says anything about the target: UsageError, as from the run."""
    recipe = task({"{ keep_fraction = 0.5 }": "{ speedup = 1.5 }"})
    (recipe.parent / "board.toml").write_text(ELSEWHERE)

    with pytest.raises(UsageError, match="a target that this machine can measure"):
        _outlook(recipe, target=str(recipe.parent / "board.toml"))


def test_a_speedup_beyond_the_smallest_widths_is_said_and_not_refused(task):
    """Only the run can measure what the smallest widths reach: they are shown, with a note."""
    outlook = _outlook(task(UNTRAINED | {"{ keep_fraction = 0.5 }": "{ speedup = 100 }"}))

    assert all(len(group.keep) == 4 for group in outlook.plan.groups)
    assert any("beyond the smallest widths" in note for note in outlook.notes)


def test_memory_is_that_of_the_run(task):
    """The estimate is what the run's process holds at its peak, which repair makes 11 % larger."""
    recipe = task(
        {**UNTRAINED, 'weights = "dense.safetensors"\n': "", "samples = 0": "samples = 64"}
    )
    folder = recipe.parent
    (folder / "model.py").write_text(WIDE)
    (folder / "board.toml").write_text(ELSEWHERE)
    data = (folder / "data.py").read_text()
    for count in ("640", "256", "512"):
        data = data.replace(f", {count})", ", 32)")
    (folder / "data.py").write_text(data)

    foretold, _ = _printed_and_peak(folder, "--dry-run", "--json")
    finished, taken = _printed_and_peak(folder, "--out", "out", "--json")

    assert json.loads(finished)["report"]["rounds"][1]["accepted"]
    estimate = json.loads(foretold)["estimate"]["peak_memory_bytes"]
    assert estimate == pytest.approx(taken, rel=0.07)


def _printed_and_peak(folder, *options):
    """What `edgeprune run` printed, and the bytes that its process held before it shut down."""
    (folder / "go.py").write_text(GO)
    done = subprocess.run(
        [sys.executable, "go.py", "run", "recipe.toml", "--target", "board.toml", *options],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout, int(done.stderr.splitlines()[-1])
