"""`inspect` and `inspect --explain` in a real process: what a person reads, to the letter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.cli.folding import fold, fold_names

GOLDEN = Path(__file__).parent / "golden"

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(12, 20, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.conv2 = nn.Conv2d(20, 12, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.norm(self.conv1(x)).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.Sequential(*[Block() for _ in range(3)])
        self.tail = nn.Conv2d(12, 8, 1)
        self.odd = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = self.tail(self.blocks(self.stem(x)))
        x = self.odd(x.cumprod(1)).mean((2, 3))
        return self.head(self.drop(x))


def build():
    return Net(), (torch.randn(2, 3, 8, 8),), {}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the model as `net.py`."""
    path = tmp_path_factory.mktemp("inspect")
    (path / "net.py").write_text(MODEL)
    return path


@pytest.fixture
def here(folder, monkeypatch):
    """here(*args, columns=80): the same command within this process; what it gives."""
    monkeypatch.chdir(folder)

    def run(*args, columns="80"):
        runner = CliRunner(env={"COLUMNS": columns})
        return runner.invoke(app, ["inspect", "net.py:build", *args])

    return run


@pytest.fixture(scope="module")
def inspect(folder):
    """inspect(*args, columns=80): the finished process of `edgeprune inspect net.py:build`."""

    def run(*args, columns="80"):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        env |= {"COLUMNS": columns} if columns else {}
        if not columns:
            env.pop("COLUMNS", None)
        return subprocess.run(
            [sys.executable, "-m", "edgeprune", "inspect", "net.py:build", *args],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("inspect-80", []),
        ("explain-pinned", ["--explain", "tail"]),
        ("explain-group", ["--explain", "stem.weight"]),
    ],
)
def test_the_text_is_the_golden_one(inspect, name, args):
    """What a person reads at 80 columns, letter by letter; no line is wider but for long names.

    After a wanted change: EDGEPRUNE_GOLDEN=write pytest tests/cli/test_cli_inspect.py.
    """
    done = inspect(*args)
    if os.environ.get("EDGEPRUNE_GOLDEN") == "write":
        (GOLDEN / f"{name}.txt").write_text(done.stdout, encoding="utf-8")

    assert done.returncode == 0, done.stderr
    assert done.stdout == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert max(len(line) for line in done.stdout.splitlines()[:-1]) <= 80


def test_a_pipe_gets_whole_names_and_no_colours(inspect):
    """Without COLUMNS and a terminal: 120 columns, no escape codes, the same groups."""
    done = inspect(columns="")

    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "blocks.{0-2}.conv1.weight x3" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) > 80


def test_verbose_names_every_block_and_every_tensor(here):
    """-v folds nothing: each block's row, each tensor dim with the line that ties it."""
    done = here("-v", columns="240")

    for block in range(3):
        assert f"blocks.{block}.conv1.weight" in done.stdout
        assert f"blocks.{block}.conv2.weight dim 1 (net.py:" in done.stdout
    assert "x3" not in done.stdout


def test_json_carries_the_same(here):
    """Groups with what they save and each tie with node, module and line; pins with module."""
    found = json.loads(here("--json").stdout)
    groups = {group["name"]: group for group in found["groups"]}
    block = groups["blocks.1.conv1.weight"]
    ties = {(tie["tensor"], tie["dim"]): tie for tie in groups["stem.weight"]["ties"]}

    assert block["params_per_unit"] == 12 * 9 + 1 + 2 + 12 * 9
    assert block["macs_per_unit"] == 2 * 12 * 9 * 64
    assert block["share"] == pytest.approx(19 * block["params_per_unit"] / found["params"])
    assert ties["blocks.0.conv2.weight", 0]["how"] == "added to"
    assert ties["blocks.0.conv2.weight", 0]["where"] == "net.py:14"
    assert ties["tail.weight", 1]["how"] == "read by"
    assert {pin["module"] for pin in found["pins"]} >= {"head", "stem"}


def test_explain_as_json_has_the_chain(here):
    """The cause with node, operator, module and line, each step of the chain, and what helps."""
    found = json.loads(here("--explain", "tail.bias", "--json").stdout)
    (account,) = found["accounts"]
    (stuck,) = account["stuck"]

    assert found["kind"] == "tensor"
    assert stuck["reason"] == "aten.cumprod.default has no rule"
    assert stuck["operator"] == "cumprod"
    assert stuck["where"] == "net.py:29"
    assert [(step["before"], step["after"]) for step in stuck["chain"]] == [
        ("tail.bias dim 0", "tail.weight dim 0")
    ]
    assert "add a rule" in stuck["advice"]


def test_quiet_says_one_line(here):
    """-q: the summary of the answer, and of the whole model, alone."""
    one = here("-q", "--explain", "blocks.0.conv1.bias").stdout
    whole = here("-q").stdout

    assert one == "blocks.0.conv1.bias: in group blocks.0.conv1.weight\n"
    assert whole.startswith("Net (net:build): ")
    assert whole.count("\n") == 1


def test_an_unknown_name_is_a_usage_error_with_near_ones(inspect):
    """Exit code 2, nothing on stdout, the nearest names on stderr."""
    done = inspect("--explain", "block.0.conv1.weight")

    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean blocks.0.conv1.weight" in done.stderr


def test_alike_rows_are_one_wherever_the_block_is_named():
    """Numbers that differ together fold; other figures, or another block's name, do not."""
    rows = [
        ("b.0.fc", "8", "read by b.0.out"),
        ("b.1.fc", "8", "read by b.1.out"),
        ("b.2.fc", "9", "read by b.2.out"),
        ("b.3.fc", "8", "read by b.0.out"),
    ]

    assert [(row.cells, row.times) for row in fold(rows)] == [
        (("b.{0-1}.fc", "8", "read by b.{0-1}.out"), 2),
        (("b.2.fc", "9", "read by b.2.out"), 1),
        (("b.3.fc", "8", "read by b.0.out"), 1),
    ]


def test_names_fold_from_the_inside_out():
    """Numbers within a word, runs and gaps: as a person would write them."""
    assert fold_names(["a.0.x", "a.1.x", "a.4.x", "y"]) == ["a.{0-1,4}.x", "y"]
    assert fold_names(["l_0.n1", "l_0.n2", "l_1.n1", "l_1.n2"]) == ["l_{0-1}.n{1-2}"]
    assert fold_names(["b.10.x", "b.1.x"]) == ["b.{1,10}.x"]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 11), st.integers(0, 3)),
        unique=True,
        max_size=30,
    )
)
def test_folding_loses_and_invents_no_name(blocks):
    """Written out again, the folded names are those that went in, each once."""
    names = [f"{letter}.{outer}.m{inner}.w" for letter, outer, inner in blocks]
    rows = fold([(name,) for name in names])
    again = [name for row in rows for name in unfolded(row.cells[0])]

    assert sorted(again) == sorted(names)
    assert sum(row.times for row in rows) == len(names)


def unfolded(name):
    """Every name that a folded one stands for."""
    before, brace, rest = name.partition("{")
    if not brace:
        return [name]
    inside, _, after = rest.partition("}")
    numbers = []
    for run in inside.split(","):
        first, _, last = run.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return [f"{before}{number}{end}" for number in numbers for end in unfolded(after)]
