"""`edgeprune run` in a process of its own: interrupted, gone on with, thought through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import jsonschema
import pytest

from edgeprune.release.report import published_schema

LONG = {"epochs = 1.0": "epochs = 200.0", "samples = 0": "samples = 64"}
SHORT = {
    "epochs = 1.0": "epochs = 0.1",
    "drop = 0.05\nbudget": "drop = 1.0\nbudget",
    "accuracy_drop = 0.05": "accuracy_drop = 1.0",
}


def _command(recipe, *options):
    return [sys.executable, "-m", "edgeprune", "run", str(recipe), *options]


def _environment():
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(task):
    """SIGINT in the first round: exit code 130, no traceback, and the journal is there."""
    recipe = task(LONG)
    journal = recipe.parent / "out.work" / "journal.jsonl"
    process = subprocess.Popen(
        _command(recipe, "--out", str(recipe.parent / "out")),
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs behind a shell's & ignores the signal, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Interrupted. The finished steps are kept: the same command goes on" in said
    assert "Traceback" not in said
    assert printed == ""
    assert json.loads(journal.read_text().splitlines()[0])["step"] == "run"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_dry_run_says_what_would_be_done(task, as_json):
    """Rounds, widths, time and memory; nothing is left behind, not even a folder."""
    recipe = task(SHORT)
    options = ["--dry-run", "--out", str(recipe.parent / "out"), *(["--json"] if as_json else [])]
    done = subprocess.run(
        _command(recipe, *options),
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert not list(recipe.parent.glob("out*"))
    if as_json:
        found = json.loads(done.stdout)
        assert [row["round"] for row in found["rounds"]] == [1, 2]
        assert found["rounds"][1]["macs"] < found["rounds"][0]["macs"] < found["dense"]["macs"]
        assert found["estimate"]["seconds"] > 0
    else:
        for words in ("Rounds", "Widths at the end", "training", "nothing was written"):
            assert words in done.stdout


def test_a_run_reports_as_json_and_the_report_fits_its_schema(task):
    """--json: one document on stdout, whose report is valid by the published schema."""
    recipe = task(SHORT)
    (recipe.parent / "board.toml").write_text('status = "facts"\nsources = ["a data sheet"]\n')
    board = str(recipe.parent / "board.toml")
    done = subprocess.run(
        _command(recipe, "--out", str(recipe.parent / "out"), "--target", board, "--json", "-q"),
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    found = json.loads(done.stdout)
    jsonschema.validate(found["report"], json.loads(published_schema()))
    assert done.returncode == found["exit_code"] == 0
