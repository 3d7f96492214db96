"""Interrupted at any moment, the same command goes on, and ends where it would have ended."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.pipeline.preparation import chosen_target
from edgeprune.pipeline.work import open_work
from edgeprune.recipe.schema import load_recipe

CHANGES = {
    "= 0.5 }": "= 0.4 }",
    "keep_fraction": "macs_fraction",
    "samples = 0": "samples = 64",
    "epochs = 1.0": "epochs = 0.3\nfinal_epochs = 0.3",
    "drop = 0.05\nbudget": "drop = 1.0\nbudget",
}
# What does not depend on a clock must come out bit for bit.
SAME = ("plan.json", "weights.safetensors", "graph.json", "model.onnx", "parity.npz")

# Runs in a child of a process that has everything imported: starting costs seconds otherwise.
NURSERY = """
import os, sys, traceback
from pathlib import Path
import torch
import edgeprune
from edgeprune.measure.settings import Settings
from edgeprune.pipeline.run import run
from edgeprune.recipe.schema import load_recipe

torch.set_num_threads(1)
measuring = Settings(
    runs=11, least_runs=11, seconds=0.05, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
)
carry_out = lambda out: run(load_recipe("recipe.toml"), out=Path(out), measuring=measuring)
# Export once; but no backward pass, which would forbid the children theirs.
edgeprune.export(torch.nn.Linear(2, 2), "warm.onnx", (torch.zeros(2, 2),))
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        # torch replaces the parent's thread pool at the first call: before two threads ask for it.
        torch.set_num_threads(1)
        code = 70
        try:
            code = carry_out(line.strip()).exit_code
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "nursery.py").write_text(NURSERY)
        self.process = subprocess.Popen(
            [sys.executable, "nursery.py"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def begin(self, out):
        self.process.stdin.write(f"{out}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def code(self):
        return int(self.process.stdout.readline())

    def steps(self, out):
        path = self.folder / f"{out}.work" / "journal.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line)["step"] for line in text.splitlines(keepends=True) if "\n" in line]

    def readings(self, out):
        manifest = json.loads((self.folder / out / "manifest.json").read_text())
        return manifest["made_from"]["test_reads"]

    def files(self, out):
        return {name: (self.folder / out / name).read_bytes() for name in SAME}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory, trained, write_task):
    """A process that has done the run once, uninterrupted (to `whole`), and repeats it on call."""
    folder = tmp_path_factory.mktemp("resume")
    write_task(folder, trained, CHANGES)
    made = Nursery(folder)
    made.begin("whole")
    assert made.code() in (0, 1, 3)
    yield made
    made.process.communicate(timeout=60)


def test_killed_at_every_step_boundary_a_run_ends_as_if_it_had_not_been(nursery):
    """SIGKILL as soon as the journal has one more line, until none is left to add: every time the
    run goes on behind that line, and the build is the uninterrupted one's, bit by bit."""
    steps = nursery.steps("whole")
    assert [s.partition(" ")[0] for s in steps] == [
        "run",
        "round",
        "round",
        "final",
        "latency",
        "reading",
    ]
    for count in range(1, len(steps) + 1):
        child = nursery.begin("boundaries")
        deadline = time.monotonic() + 60
        while len(nursery.steps("boundaries")) < count:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        assert nursery.code() == -signal.SIGKILL
        assert not (nursery.folder / "boundaries").exists()
        assert nursery.steps("boundaries")[: count - 1] == steps[: count - 1]

    nursery.begin("boundaries")
    assert nursery.code() in (0, 1, 3)
    assert nursery.files("boundaries") == nursery.files("whole")
    # A reading of the test split that was cut off counts as one.
    assert nursery.readings("whole") == 1
    assert nursery.readings("boundaries") >= 2


def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(nursery):
    """Twenty times SIGKILL after a random while, over as many runs as that takes."""
    rng = random.Random(3)
    kills = runs = 0
    while kills < 20:
        out = f"random{runs}"
        while not (nursery.folder / out).exists():
            child = nursery.begin(out)
            if kills < 20:
                time.sleep(rng.uniform(0.0, 2.0))
                os.kill(child, signal.SIGKILL)
            killed = nursery.code() == -signal.SIGKILL
            kills += killed
        assert nursery.files(out) == nursery.files("whole")
        runs += 1


@pytest.fixture
def begun(task):
    """A recipe, its target, and the folder of a run that has written two lines of its journal."""
    recipe = load_recipe(task())
    target = chosen_target(recipe, None)
    out = recipe.base_dir / "out"
    with open_work(out, recipe, target, fresh=False) as work:
        work.journal.add("round 1", str, "done")
    return recipe, target, out


def _open(begun, **changes):
    recipe, target, out = begun
    with open_work(
        out, changes.get("recipe", recipe), target, fresh=changes.get("fresh", False)
    ) as w:
        return w.journal.steps, w.torn


def test_a_line_cut_short_is_a_step_not_done(begun):
    """Half a line at the end is left out and said; what was whole is kept."""
    journal = begun[2].with_name("out.work") / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])

    assert _open(begun) == (("run",), True)


@pytest.mark.parametrize("edit", [('"done"', '"lost"'), ('"round 1"', '"round 2"'), ("{", "")])
def test_an_edited_journal_is_refused_and_nothing_is_lost(begun, edit):
    """Another content, another name, no JSON: UsageError names the line; the file stays."""
    journal = begun[2].with_name("out.work") / "journal.jsonl"
    first, second = journal.read_text().splitlines(keepends=True)
    journal.write_text(first + second.replace(*edit, 1))
    before = journal.read_bytes()

    with pytest.raises(UsageError, match=r"line 2.*--fresh"):
        _open(begun)

    assert journal.read_bytes() == before


def test_a_line_that_was_taken_out_is_noticed(begun):
    """The chain of hashes covers the order of the lines."""
    journal = begun[2].with_name("out.work") / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[1])

    with pytest.raises(UsageError, match="line 1"):
        _open(begun)


def test_steps_without_their_journal_are_refused(begun):
    """A journal that is gone while models of steps are there: no silent new beginning."""
    work = begun[2].with_name("out.work")
    (work / "steps" / "round-01").mkdir(parents=True)
    (work / "journal.jsonl").unlink()

    with pytest.raises(UsageError, match="expected a journal of the steps"):
        _open(begun)
    assert (work / "steps" / "round-01").exists()
    assert _open(begun, fresh=True) == (("run",), False)


def test_another_run_in_the_same_folder_is_refused(begun):
    """The second one ends with EnvironmentFailed and names the process; the first goes on."""
    recipe, target, out = begun
    refusal = pytest.raises(EnvironmentFailed, match=f"process {os.getpid()}")
    with open_work(out, recipe, target, fresh=False), refusal:
        _open(begun)

    assert _open(begun)[0] == ("run", "round 1")


def test_steps_of_another_recipe_are_not_gone_on_with(begun):
    """A changed key asks for --fresh; the steps stay until then."""
    path = begun[0].path
    path.write_text(path.read_text().replace("rounds = 2", "rounds = 3"))
    changed = load_recipe(path)

    with pytest.raises(UsageError, match=r"another recipe.*--fresh"):
        _open(begun, recipe=changed)
    assert _open(begun)[0] == ("run", "round 1")
    assert _open(begun, recipe=changed, fresh=True)[0] == ("run",)


def test_a_work_folder_that_is_not_ours_is_refused(begun):
    """Something else in DIR.work: nothing is written or removed, not even with --fresh."""
    work = begun[2].with_name("out.work")
    (work / "thesis.tex").write_text("years of work")

    for fresh in (False, True):
        with pytest.raises(UsageError, match=r"thesis\.tex"):
            _open(begun, fresh=fresh)
    assert (work / "thesis.tex").read_text() == "years of work"
