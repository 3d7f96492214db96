"""Every command of the README is run, in the order in which a newcomer meets it."""

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
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
PROGRAM_COMMANDS = [shlex.split(line) for line in COMMANDS if line.startswith("edgeprune ")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the samples, so that the commands write no build/ into the checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "samples", folder / "samples")
    return folder


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=folder, text=True, capture_output=True, timeout=900, check=False
    )


@pytest.mark.first
@pytest.mark.parametrize("words", PROGRAM_COMMANDS, ids=lambda words: words[1])
def test_each_program_command_runs(words: list[str], checkout: Path) -> None:
    """Each `edgeprune ...` of the README does its work; only latency may be undecided here.

    The tests run beside each other on the same cores, so the latency gate of the whole run may
    fail or stay inconclusive; every other verdict must be a pass.
    """
    done = _run([sys.executable, "-m", *words], checkout)

    if words[1] != "run" or "--dry-run" in words:
        assert done.returncode == 0, done.stderr
        return
    report = json.loads((checkout / "build/fashion/report.json").read_text(encoding="utf-8"))
    outcomes = {verdict["gate"]: verdict["outcome"] for verdict in report["verdicts"]}
    timed = {gate for gate in outcomes if gate in ("latency", "speedup")}
    assert {outcomes[gate] for gate in outcomes.keys() - timed} == {"pass"}, done.stderr
    assert timed, outcomes
    expected = {"pass": 0, "fail": 1, "inconclusive": 3}
    worst = max((outcomes[gate] for gate in timed), key=["pass", "inconclusive", "fail"].index)
    assert done.returncode == expected[worst], done.stderr


def test_the_python_example_runs(tmp_path: Path) -> None:
    """The README's Python block runs as it stands and writes the file it names."""
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert code is not None
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-c", code.group(1)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("proved")
    assert (tmp_path / "resnet18-pruned.onnx").stat().st_size > 0


@pytest.mark.parametrize("target", [c.split()[1] for c in COMMANDS if c.startswith("make ")])
def test_each_make_target_exists(target: str) -> None:
    """Each `make ...` of the README is a target; the demo is the README's own main command."""
    plan = subprocess.run(
        ["make", "-n", target], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout

    wanted = {"demo": "run samples/fashion/recipe.toml --out build/fashion", "test": "pytest"}
    assert wanted[target] in plan


def test_no_command_is_left_out() -> None:
    """Every console line of the README is either a make target or a program command."""
    others = [line for line in COMMANDS if not line.startswith(("make ", "edgeprune "))]
    assert others == []
    assert len(PROGRAM_COMMANDS) >= 4
