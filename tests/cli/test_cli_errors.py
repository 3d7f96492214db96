"""How a command ends: one block, the right exit code, tracebacks only where they help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from edgeprune import errors
from edgeprune.cli.app import app
from edgeprune.pipeline.progress import Progress
from edgeprune.release.bundle import Bundle, seal, staging_folder
from edgeprune.release.manifest import Provenance
from edgeprune.release.report import Figures, Report, VerdictRow

RECIPE = """
[model]
factory = "model.py:build"
[data]
factory = "data.py:load"
[prune]
budget = { keep_fraction = 0.5 }
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose files are there, in a folder of its own."""
    for name in ("model.py", "data.py"):
        (tmp_path / name).write_text("")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def pipeline(monkeypatch):
    """Put a function in the place of the pipeline's run."""

    def place(run):
        module = types.ModuleType("edgeprune.pipeline.run")
        module.run = run
        monkeypatch.setitem(sys.modules, "edgeprune.pipeline.run", module)

    return place


def raising(error):
    """A pipeline that raises."""

    def run(*args, **kwargs):
        raise error

    return run


def finishing(outcome, seen):
    """A pipeline that reports progress, and finishes with a verdict of its own."""

    def run(recipe, *, out, target, fresh, progress: Progress) -> Bundle:
        seen.update(recipe=recipe, out=out, target=target, fresh=fresh)
        progress.stage("round 1")
        progress.step(1, 2, "loss [red]0.5")
        progress.note("round 1 accepted [bold]")
        staging_folder(out).mkdir(parents=True)
        verdict = VerdictRow(gate="accuracy", outcome=outcome, observed=0.01, limit=0.02)
        report = Report(
            dense=Figures(accuracy=0.9, params=100, macs=10),
            pruned=Figures(accuracy=0.89, params=40, macs=5),
            verdicts=(verdict,),
        )
        made_from = Provenance(target="local", versions={}, test_reads=1)
        return seal(out, report, made_from)

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("u"), 2),
        (errors.RecipeError("r"), 2),
        (errors.DataError("d"), 2),
        (errors.UserCodeError("c"), 2),
        (errors.PlanError("p"), 2),
        (errors.ModelNotSupported("m"), 4),
        (errors.NothingToRemove("n"), 4),
        (errors.EnvironmentFailed("e"), 5),
        (errors.InternalError("i"), 70),
        (errors.ProofFailed("f"), 70),
        (ValueError("unexpected"), 70),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(32, "a worker of the user's"), 70),
        (SystemExit(0), 2),
        (SystemExit(3), 2),
    ],
)
def test_each_error_has_its_exit_code(recipe, pipeline, error, code):
    """The exit code is the error's; anything unexpected is an internal error.

    A user's sys.exit ends nothing with the code of a verdict.
    """
    pipeline(raising(error))
    result = CliRunner().invoke(app, ["run", str(recipe)])

    assert result.exit_code == code
    assert result.stdout == ""


@pytest.mark.parametrize(("flag", "shown"), [([], False), (["-v"], False), (["-vv"], True)])
def test_a_users_error_is_one_block(recipe, pipeline, flag, shown):
    """The message stands on stderr once; the traceback, cause included, only with -vv."""
    error = errors.UserCodeError("making the model at model.py:3: expected [x], got y. Mend it.")
    error.__cause__ = ZeroDivisionError("division by zero")
    pipeline(raising(error))
    result = CliRunner().invoke(app, ["run", str(recipe), *flag])

    assert "UserCodeError: making the model at model.py:3: expected [x], got y." in result.stderr
    assert ("Traceback" in result.stderr) == shown
    assert ("ZeroDivisionError" in result.stderr) == shown
    assert ("-vv" in result.stderr) != shown


def test_our_own_bug_shows_its_traceback(recipe, pipeline):
    """An internal error is printed with its traceback, whatever the verbosity."""
    pipeline(raising(KeyError("lost")))
    result = CliRunner().invoke(app, ["run", str(recipe), "-q"])

    assert "Traceback" in result.stderr
    assert "KeyError" in result.stderr
    assert "InternalError" in result.stderr


def test_an_error_as_json_leaves_stdout_pure(recipe):
    """With --json a failing command prints one JSON document that carries type, where and code."""
    recipe.write_text(RECIPE.replace("keep_fraction", "keep_fracton"))
    result = CliRunner().invoke(app, ["run", str(recipe), "--json"])
    error = json.loads(result.stdout)["error"]

    assert (error["type"], error["exit_code"], result.exit_code) == ("RecipeError", 2, 2)
    assert error["where"] == "prune.budget.keep_fracton"
    assert error["message"] in result.stderr


@pytest.mark.parametrize(("outcome", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 3)])
def test_a_finished_run_exits_with_its_verdict(recipe, pipeline, tmp_path, outcome, code):
    """The bundle's outcome is the exit code, and the last line says it and where the bundle is."""
    pipeline(finishing(outcome, {}))
    result = CliRunner().invoke(app, ["run", str(recipe), "--out", str(tmp_path / "out")])
    last = result.stdout.strip().splitlines()[-1]

    assert result.exit_code == code
    assert last.startswith(f"{outcome}: accuracy -1.00 points, parameters -60 %")
    assert str(tmp_path / "out") in last
    assert "round 1 accepted [bold]" in result.stderr


def test_options_reach_the_pipeline(recipe, pipeline, tmp_path):
    """Recipe, place, target and fresh are handed on as given."""
    seen = {}
    pipeline(finishing("pass", seen))
    out = tmp_path / "out"
    args = ["run", str(recipe), "--out", str(out), "--target", "board", "--fresh"]
    CliRunner().invoke(app, args)

    assert (seen["recipe"].path, seen["out"], seen["target"], seen["fresh"]) == (
        recipe,
        out,
        "board",
        True,
    )


def test_the_default_place_is_build_and_the_recipes_folder(recipe, pipeline, tmp_path, monkeypatch):
    """Without --out the bundle goes to build/ and the name of the recipe's folder."""
    seen = {}
    pipeline(finishing("pass", seen))
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["run", str(recipe)])

    assert seen["out"].parts == ("build", tmp_path.name)
    assert seen["target"] is None


def test_a_result_as_json_leaves_stdout_pure(recipe, pipeline, tmp_path):
    """With --json stdout is one document with the report; progress stays on stderr."""
    pipeline(finishing("fail", {}))
    args = ["run", str(recipe), "--json", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, args)
    written = json.loads(result.stdout)

    assert (written["outcome"], written["exit_code"], result.exit_code) == ("fail", 1, 1)
    assert Report.model_validate(written["report"]).outcome == "fail"
    assert "round 1" in result.stderr


def test_quiet_prints_one_line(recipe, pipeline, tmp_path):
    """With -q there is one line on stdout and nothing on stderr."""
    pipeline(finishing("pass", {}))
    args = ["run", str(recipe), "-q", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, args)

    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


TALKATIVE = """
import ctypes, os, subprocess
import torch
from torch import nn

print("printed on import")

def build():
    print("printed")
    os.write(1, b"written\\n")
    ctypes.CDLL(None).puts(b"put by C")
    subprocess.run(["echo", "echoed"], check=True)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return net, (torch.randn(2, 4),), {}

def fail():
    print("printed")
    raise ValueError("no")
"""


def program(*args, **options):
    """The program in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "edgeprune", *map(str, args)]
    return subprocess.run(command, env=environment, text=True, timeout=120, **options)


@pytest.mark.parametrize(("function", "code"), [("build", 0), ("fail", 2)])
def test_what_the_users_code_prints_is_not_in_the_document(tmp_path, function, code):
    """With --json stdout is one document, whoever prints: Python, C, a child process."""
    (tmp_path / "model.py").write_text(TALKATIVE)
    done = program("inspect", f"{tmp_path / 'model.py'}:{function}", "--json", capture_output=True)

    assert done.returncode == code, done.stderr
    assert ("error" in json.loads(done.stdout)) == (code != 0)
    words = ["printed on import", "printed\n"]
    words += ["written", "put by C", "echoed"] if code == 0 else []
    assert [word for word in words if word not in done.stderr] == []


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["check", "m.onnx", "--latency-ms", "-1"], "--latency-ms"),
        (["check", "m.onnx", "--nonsense"], "--nonsense"),
        (["run"], "RECIPE"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_wrong_call_with_json_is_a_document_too(args, part):
    """An error of the command line itself is told on stdout as JSON, and on stderr; exit code 2."""
    done = program(*args, "--json", capture_output=True)
    error = json.loads(done.stdout)["error"]

    assert done.returncode == error["exit_code"] == 2
    assert error["type"] == "UsageError"
    assert part in error["message"]
    assert part in done.stderr
    assert program(*args, capture_output=True).stdout == ""


@pytest.mark.parametrize(
    "args",
    [
        ["--version"],
        ["check", "--help"],
        ["targets", "list"],
        ["targets", "list", "--json"],
        ["targets", "list", "-q"],
        ["run", "--json"],
    ],
)
@pytest.mark.parametrize("stderr_too", [False, True])
def test_a_reader_that_went_away_ends_the_program_quietly(args, stderr_too):
    """`edgeprune ... | head -1`: exit code 141 as of SIGPIPE, and no error that blames anybody."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        stderr = writing if stderr_too else subprocess.PIPE
        done = program(*args, stdout=writing, stderr=stderr)
    finally:
        os.close(writing)

    assert done.returncode == 141
    if not stderr_too and args[0] != "run":
        assert done.stderr == ""
    assert "Broken" not in (done.stderr or "")


def test_a_user_who_prints_to_a_reader_that_went_away_is_not_blamed(tmp_path):
    """The user's own print fails with the pipe; that is no error of the user's code."""
    loud = TALKATIVE.replace('print("printed")', 'print("printed", flush=True)')
    (tmp_path / "model.py").write_text(loud)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        model = f"{tmp_path / 'model.py'}:fail"
        done = program("inspect", model, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)

    assert (done.returncode, done.stderr) == (141, "")
