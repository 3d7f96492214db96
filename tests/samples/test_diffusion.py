"""The diffusion sample as a person runs it: a process of its own, at an eighth of the width."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "samples" / "diffusion" / "prune_unet.py"
STAGES = ["build", "analyze", "score", "plan", "shrink", "prove", "export"]


@pytest.mark.first
def test_a_halved_unet_is_proved_exported_and_runs(tmp_path):
    """Of every width half goes: over 60 % of the parameters, proved, the same in ONNX Runtime."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert report["dense_parameters"] > 10_000_000
    assert report["removed_fraction"] >= 0.60
    assert report["proof"] == "proved"
    assert report["proof_error"] <= 1e-4 < 0.01 < report["change"]
    assert report["sabotages"] == 9
    assert report["onnx_difference"] <= 1e-4
    assert [stage["name"] for stage in report["stages"]] == [*STAGES, "ONNX Runtime"]
    peaks = [stage["peak_mib"] for stage in report["stages"]]
    assert 0 < peaks[0] <= peaks[-1] == report["peak_mib"] < 20 * 1024
    # The weights are in the file beside, and nearly all of what the parameters take.
    assert report["files"] == {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    assert set(report["files"]) == {"unet.onnx", "unet.onnx.data"}
    assert report["files"]["unet.onnx.data"] >= 0.98 * 4 * report["pruned_parameters"]
    model = onnx.load(tmp_path / "unet.onnx", load_external_data=False)
    assert [i.name for i in model.graph.input] == ["sample", "timestep", "encoder_hidden_states"]


def test_the_full_size_is_stable_diffusions_own():
    """With no divisor the network has the 859,520,964 parameters of Stable Diffusion 1.x."""
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import torch, prune_unet\n"
        "model = prune_unet.skeleton(prune_unet.FULL)\n"
        "print(prune_unet.parameters(model), model.config.sample_size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout.split() == ["859520964", "64"], done.stderr
