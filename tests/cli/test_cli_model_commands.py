"""`inspect` and `prune` on a small real model."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
"""

QUITTER = """
import sys
from torch import nn


class Quitter(nn.Module):
    def forward(self, x):
        sys.exit(0)
"""


@pytest.fixture
def spec(tmp_path):
    """A multilayer perceptron of widths 6, 16, 8, 3 as a file."""
    (tmp_path / "perceptron.py").write_text(MODEL)
    return f"{tmp_path / 'perceptron.py'}:build"


def test_inspect_counts_what_a_unit_owns(spec):
    """Removing a hidden neuron saves its row, its bias and its reader's column, by hand."""
    result = CliRunner().invoke(app, ["inspect", spec, "--input", "2x6", "--json"])
    found = json.loads(result.stdout)
    groups = {group["name"]: group for group in found["groups"]}

    assert result.exit_code == 0
    assert found["params"] == 6 * 16 + 16 + 16 * 8 + 8 + 8 * 3 + 3
    assert set(groups) == {"0.weight", "2.weight"}
    assert groups["0.weight"]["width"] == 16
    assert groups["0.weight"]["params_per_unit"] == 6 + 1 + 8
    assert groups["2.weight"]["params_per_unit"] == 16 + 1 + 3
    assert groups["0.weight"]["macs_per_unit"] == 6 + 8
    assert groups["0.weight"]["share"] == pytest.approx(15 * 15 / found["params"])
    assert groups["0.weight"]["macs_share"] == pytest.approx(15 * 14 / found["macs"])
    assert groups["0.weight"]["coupled"] == ["0.weight dim 0", "0.bias dim 0", "2.weight dim 1"]
    assert {unit.split()[0] for pin in found["pins"] for unit in pin["units"]} >= {"4.weight"}


def test_inspect_says_it_in_a_table(spec):
    """It names groups, pins with their reason, and the totals; -v names every tensor."""
    wide = CliRunner(env={"COLUMNS": "240"})
    plain = wide.invoke(app, ["inspect", spec, "--input", "2x6"]).stdout
    verbose = wide.invoke(app, ["inspect", spec, "--input", "2x6", "-v"]).stdout

    assert "0.weight" in plain
    assert "output of the model" in plain
    assert "2 groups with 24 units" in plain.splitlines()[-1]
    assert "2.weight dim 1" in verbose
    assert "2.weight dim 1" not in plain


def test_prune_delivers_a_proved_bundle(spec, tmp_path):
    """The folder's ONNX file, weights, plan and loaded model all tell of the same small model."""
    out = tmp_path / "small"
    args = ["prune", spec, "--input", "2x6", "--keep", "0.5", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, args)
    report = json.loads(result.stdout)["report"]
    state = load_file(out / "weights.safetensors")
    plan = json.loads((out / "plan.json").read_text())
    inputs = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    (onnx_output,) = onnxruntime.InferenceSession(out / "model.onnx").run(None, {"input": inputs})
    with torch.no_grad():
        torch_output = edgeprune.load(out)(torch.from_numpy(inputs)).numpy()

    assert result.exit_code == 0
    assert [tuple(state[f"{i}.weight"].shape) for i in (0, 2, 4)] == [(8, 6), (4, 8), (3, 4)]
    assert [len(group["keep"]) for group in plan["groups"]] == [8, 4]
    assert report["pruned"]["params"] == sum(value.numel() for value in state.values())
    assert report["rounds"][0]["proof"]["error"] <= 1e-4
    assert [verdict["gate"] for verdict in report["verdicts"]] == ["parity"]
    np.testing.assert_allclose(onnx_output, torch_output, rtol=1e-4, atol=1e-5)
    for entry in json.loads((out / "manifest.json").read_text())["files"]:
        assert hashlib.sha256((out / entry["name"]).read_bytes()).hexdigest() == entry["sha256"]


def test_prune_without_a_place_writes_nothing(spec, tmp_path, monkeypatch):
    """Without --out the result is only printed."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    result = CliRunner().invoke(app, ["prune", spec, "--input", "2x6", "--keep", "0.75"])

    assert result.exit_code == 0
    assert "parameters" in result.stdout.splitlines()[-1]
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "widths"),
    [
        (["--only", "0.*"], [8, 8]),
        (["--keep-whole", "4.*"], [8, 8]),
        (["--fraction", "2.weight=0.25"], [8, 2]),
        (["--min-width", "6"], [8, 6]),
        (["--min-width", "6", "--min-width", "0.*=12"], [12, 6]),
        (["--keep", "1", "--fraction", "*=0.25"], [4, 2]),
    ],
)
def test_prune_removes_only_what_is_asked(spec, args, widths):
    """By hand, on widths 16 and 8."""
    result = CliRunner().invoke(app, ["prune", spec, "--input", "2x6", *args, "--json"])

    assert result.exit_code == 0, result.stderr
    groups = json.loads(result.stdout)["report"]["groups"]
    assert [group["after"] for group in groups] == widths


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "7.*"], "plan at only: expected a pattern that matches a weight"),
        (["--keep-whole", "7.*"], "plan at keep: expected a pattern that matches a tensor"),
        (["--only", "4.weight"], "4.weight only follows the width of 2.weight"),
        (["--keep-whole", "2.*"], "remove more by keep_fraction or multiple or keep"),
        (["--fraction", "0.*=2"], "plan at fractions: expected shares above 0, at most 1, got 2"),
        (["--fraction", "0.5"], "reading --fraction: expected PATTERN=SHARE, got '0.5'"),
        (["--min-width", "0.*=x"], "reading --min-width: expected [PATTERN=]N, got '0.*=x'"),
        (["--min-width", "2", "--min-width", "3"], "got '*' twice"),
    ],
)
def test_prune_explains_a_selection_that_cannot_be(spec, args, message):
    """Each mistake exits with 2 and names the option, what was expected and what stands there."""
    result = CliRunner().invoke(app, ["prune", spec, "--input", "2x6", *args])

    assert result.exit_code == 2
    assert message in result.stderr


def test_prune_refuses_a_place_that_is_not_ours(spec, tmp_path):
    """A folder with other files is refused before the model is even loaded."""
    (tmp_path / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["prune", "no.py:build", "--out", str(tmp_path)])

    assert result.exit_code == 2
    assert "Choose another --out" in result.stderr


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--criterion", "l3"], "l3"),
        (["--keep", "0"], "keep_fraction"),
    ],
)
def test_prune_explains_what_it_cannot_do(spec, args, part):
    """An unknown criterion or a fraction of 0 exits with 2 and names the culprit."""
    result = CliRunner().invoke(app, ["prune", spec, "--input", "2x6", *args])

    assert result.exit_code == 2
    assert part in result.stderr


def test_a_model_that_ends_the_program_is_the_users_mistake(tmp_path):
    """sys.exit(0) in forward is no success: exit code 2, with the line."""
    (tmp_path / "quitter.py").write_text(QUITTER)
    result = CliRunner().invoke(
        app, ["inspect", f"{tmp_path / 'quitter.py'}:Quitter", "--input", "2x6"]
    )

    assert result.exit_code == 2
    assert "quitter.py:8" in result.stderr
    assert result.stdout == ""


def test_a_model_without_anything_to_remove_is_told_as_that(tmp_path):
    """Inputs and outputs are the caller's: one linear layer has nothing else. Exit code 4."""
    (tmp_path / "alone.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Linear(6, 3)\n"
    )
    spec = f"{tmp_path / 'alone.py'}:build"
    result = CliRunner().invoke(
        app, ["prune", spec, "--input", "2x6", "--out", str(tmp_path / "o")]
    )

    assert result.exit_code == 4
    assert "NothingToRemove" in result.stderr
    assert not (tmp_path / "o").exists()


def test_a_model_in_half_precision_is_judged_by_its_own_rounding(tmp_path):
    """float16 weights, inputs and outputs: proved, exported, and parity passes at 0.01."""
    halved = MODEL.replace("nn.Linear(8, 3))", "nn.Linear(8, 3)).half()")
    (tmp_path / "half.py").write_text(
        f"import torch\n{halved.rstrip()}, (torch.randn(2, 6).half(),), {{}}\n"
    )
    result = CliRunner().invoke(
        app, ["prune", f"{tmp_path / 'half.py'}:build", "--out", str(tmp_path / "out"), "--json"]
    )

    assert result.exit_code == 0, result.stderr
    (verdict,) = json.loads(result.stdout)["report"]["verdicts"]
    assert (verdict["gate"], verdict["outcome"], verdict["limit"]) == ("parity", "pass", 0.01)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert session.get_inputs()[0].type == "tensor(float16)"
