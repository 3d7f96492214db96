"""edgeprune on the sample's own recipe, whole and with a part left out."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from torch import nn

import edgeprune
from edgeprune.measure.settings import Settings
from edgeprune.pipeline.run import run
from edgeprune.recipe.schema import Recipe, load_recipe
from edgeprune.release.report import Report

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "samples" / "fashion" / "recipe.toml"
# Without repair or training a round may fall below the guard and be undone; to compare at the same
# speed, the guard lets everything through where a part is left out.
NO_GUARD = {"max_accuracy_drop": 1.0}

# What is changed in the recipe, by table, for each variant.
VARIANTS: dict[str, dict[str, dict[str, float | int]]] = {
    "edgeprune": {},
    "no-repair": {"repair": {"samples": 0}, "prune": NO_GUARD},
    "no-training": {"recover": {"epochs": 0.0, "final_epochs": 0.0}, "prune": NO_GUARD},
}


def recipe(epochs_scale: float = 1.0) -> Recipe:
    """The sample's recipe; all epochs times a factor."""
    read = load_recipe(RECIPE)
    recover = read.recover.model_copy(
        update={
            "epochs": read.recover.epochs * epochs_scale,
            "final_epochs": read.recover.final_epochs * epochs_scale,
        }
    )
    # With next to no training the guard would undo what a trial of the script wants to see.
    guard = read.prune.model_copy(update=NO_GUARD if epochs_scale < 1 else {})
    return read.model_copy(update={"recover": recover, "prune": guard})


def variation(whole: Recipe, variant: str, seed: int) -> Recipe:
    """The recipe of a variant at a seed."""
    updates: dict[str, dict[str, float | int]] = {
        table: dict(keys) for table, keys in VARIANTS[variant].items()
    }
    updates.setdefault("prune", {})["seed"] = seed
    tables = {
        table: getattr(whole, table).model_copy(update=keys) for table, keys in updates.items()
    }
    return whole.model_copy(update=tables)


def prune(chosen: Recipe, out: Path, effort: Settings | None) -> tuple[nn.Module, float, str]:
    """Run a recipe afresh: the pruned model, the seconds of its rounds and training, a note."""
    for folder in (out, out.with_name(f"{out.name}.work")):
        shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    bundle = run(chosen, out=out, measuring=effort)
    seconds = time.perf_counter() - start
    report = Report.model_validate_json((out / "report.json").read_text(encoding="utf-8"))
    accepted = [r for r in report.rounds if r.accepted]
    note = f"{len(accepted)} of {len(report.rounds)} rounds accepted, exit {bundle.exit_code}"
    return edgeprune.load(out), seconds, note
