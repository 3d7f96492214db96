"""How a command ends: one block, the right exit code, tracebacks only where they help."""

from __future__ import annotations

import json
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
