"""The README is a newcomer's path: everything on it is run, in its order, in one folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# (language, text) of every block, in order.
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for language, text in BLOCKS
    if language == "console"
    for line in text.splitlines()
    if line.startswith("$ ")
]
TIMED = {"latency", "speedup"}
CODES = {"pass": 0, "inconclusive": 3, "fail": 1}


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        words, cwd=folder, text=True, capture_output=True, timeout=900, check=False, env=environment
    )


def _steps() -> list[tuple[str, str]]:
    """Program commands and Python blocks, as (kind, text), in the order of the page."""
    steps: list[tuple[str, str]] = []
    for language, text in BLOCKS:
        if language == "python":
            steps.append((language, text))
            continue
        lines = (line.removeprefix("$ ") for line in text.splitlines())
        steps += [("program", line) for line in lines if line.startswith("edgeprune ")]
    return steps


def _require_verdicts(done: subprocess.CompletedProcess[str], folder: Path, words: list[str]):
    """Every verdict of a run or check passes; only time may be undecided, or fall short, here.

    The tests run beside each other on the same cores. The exit code follows the verdicts.
    """
    if words[1] == "run":
        text = (folder / "build/fashion/report.json").read_text(encoding="utf-8")
    else:
        text = done.stdout
    outcomes = {v["gate"]: v["outcome"] for v in json.loads(text)["verdicts"]}
    assert outcomes, done.stderr
    assert {outcomes[gate] for gate in outcomes.keys() - TIMED} <= {"pass"}, done.stderr
    worst = max(outcomes.values(), key=["pass", "inconclusive", "fail"].index)
    assert done.returncode == CODES[worst], done.stderr
    return outcomes


@pytest.mark.first
def test_the_path_of_a_newcomer(tmp_path: Path) -> None:
    """Each `edgeprune ...` and each Python block of the README does its work, in order.

    The one command on a device that is not here ends as inconclusive, as the README says.
    """
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    made = 0
    seen: dict[str, str] = {}
    for kind, text in _steps():
        if kind == "python":
            done = _run([sys.executable, "-c", text], tmp_path)
            assert done.returncode == 0, done.stderr
            continue
        words = shlex.split(text)
        judged = words[1] == "check" or (words[1] == "run" and "--dry-run" not in words)
        asked = [*words, "--json"] if words[1] == "check" else words
        done = _run([sys.executable, "-m", *asked], tmp_path)
        if judged:
            outcomes = _require_verdicts(done, tmp_path, words)
            made = done.returncode if words[1] == "run" else made
            seen |= outcomes
            if "raspberry-pi-4" in words:
                assert outcomes["latency"] == "inconclusive"
        elif words[1] == "verify":  # the bundle is as it was made, whatever its verdict
            assert done.returncode == made, done.stdout + done.stderr
        else:
            assert done.returncode == 0, done.stdout + done.stderr

    gates = {"budget", "accuracy", "parity", "contract", "operators", "accuracy_min", "flips"}
    assert gates <= seen.keys()
    assert (tmp_path / "resnet18-pruned.onnx").stat().st_size > 0
    assert (tmp_path / "build/check.xml").stat().st_size > 0


@pytest.mark.parametrize("target", [c.split()[1] for c in COMMANDS if c.startswith("make ")])
def test_each_make_target_exists(target: str) -> None:
    """Each `make ...` of the README is a target; the demo is the README's own main command."""
    plan = subprocess.run(
        ["make", "-n", target], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout

    wanted = {"demo": "run samples/fashion/recipe.toml --out build/fashion", "test": "pytest"}
    assert wanted[target] in plan


def test_no_command_is_left_out() -> None:
    """Every console line is a make target, a program command, or the one that installs without
    torch, which tests/packaging runs in a clean environment."""
    others = [line for line in COMMANDS if not line.startswith(("make ", "edgeprune "))]
    assert others == ["pip install --constraint constraints.txt ."]
    assert len([line for line in COMMANDS if line.startswith("edgeprune ")]) >= 12


def test_every_option_of_check_that_the_readme_names_is_there() -> None:
    """The table of gates names options of the program, and leaves out none that sets a limit."""
    listed = set(re.findall(r"`(--[a-z0-9-]+)", README))
    words = [sys.executable, "-m", "edgeprune", "check", "--help"]
    offered = set(re.findall(r"--[a-z0-9-]+", _run(words, ROOT).stdout))
    limits = {f"--{name}" for name in ("latency-ms", "latency-p90-ms", "speedup", "accuracy-min")}
    limits |= {f"--{name}" for name in ("accuracy-drop", "max-flips", "size-mib", "size-ratio")}

    assert limits <= offered
    assert limits <= listed
