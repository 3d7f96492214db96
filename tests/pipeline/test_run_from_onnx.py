"""A whole run of a recipe whose model is an ONNX file, with no PyTorch code beside it."""

from __future__ import annotations

import importlib.util
import json
import warnings

import torch
from safetensors.torch import load

from edgeprune.measure.settings import Settings
from edgeprune.pipeline.run import run
from edgeprune.recipe.schema import load_recipe, named_files, recipe_hash

CHANGES = {
    'factory = "model.py:build"': 'factory = "dense.onnx"',
    'weights = "dense.safetensors"\n': "",
}


def write_dense(folder, weights: bytes) -> None:
    """The task's trained model as the older exporter writes it by default: for one image."""
    spec = importlib.util.spec_from_file_location("onnx_dense", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, args, _ = module.build()
    model.load_state_dict(load(weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (args[0][:1],), folder / "dense.onnx", dynamo=False)
    (folder / "model.py").unlink()
    (folder / "dense.safetensors").unlink()


def test_a_recipe_runs_from_a_file_alone(tmp_path, trained, write_task):
    """Rounds, recovery on batches of 32 of a file for one image, gates, a bundle that passed."""
    path = write_task(tmp_path, trained, CHANGES)
    write_dense(tmp_path, trained)

    bundle = run(
        load_recipe(path),
        out=tmp_path / "out",
        measuring=Settings(
            runs=11,
            least_runs=11,
            seconds=0.1,
            warmup=1,
            pilot_pairs=2,
            least_pairs=2,
            most_pairs=2,
        ),
    )

    assert bundle.exit_code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dense"]["accuracy"] > 0.9
    assert report["pruned"]["accuracy"] > 0.9
    assert report["pruned"]["params"] < 0.6 * report["dense"]["params"]
    assert {v["outcome"] for v in report["verdicts"]} == {"pass"}


def test_the_file_counts_to_the_recipe(tmp_path, trained, write_task):
    """It is named beside the recipe, must be there, and another one makes another hash."""
    path = write_task(tmp_path, trained, CHANGES)
    write_dense(tmp_path, trained)
    recipe = load_recipe(path)
    before = recipe_hash(recipe)

    (tmp_path / "dense.onnx").write_bytes(b"another")

    assert named_files(recipe)["model.factory"] == tmp_path / "dense.onnx"
    assert recipe_hash(recipe) != before
