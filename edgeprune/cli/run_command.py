"""`edgeprune run`: the whole pipeline from a recipe to a judged bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.options import Json, Quiet, Verbose
from edgeprune.cli.session import session


def run_command(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where the bundle goes. Default: build/ and the name of the recipe's folder.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="Target profile: a shipped name or a .toml file. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, also where a finished run is there.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Prune by a recipe, export, judge, and leave a bundle with the evidence.

    Several rounds of score, remove, prove and recover with an accuracy guard; then ONNX, gates for
    latency, accuracy, size and parity on ONNX Runtime, and a folder with model, plan and report.
    """
    # Read by OpenMP when torch loads: a waiting thread sleeps. Spinning, the default, makes
    # training several times slower as soon as anything else runs on one of the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        from edgeprune.cli.progress import terminal_progress
        from edgeprune.cli.tables import figures_table, gates_table, verdict_banner
        from edgeprune.pipeline.run import run
        from edgeprune.recipe.schema import load_recipe
        from edgeprune.release.wording import headline

        loaded = load_recipe(recipe)
        place = out or Path("build") / loaded.path.parent.name
        with terminal_progress(quiet=quiet) as progress:
            bundle = run(loaded, out=place, target=target, fresh=fresh, progress=progress)
        report = bundle.report
        current.data(
            {
                "bundle": str(bundle.path),
                "outcome": bundle.outcome,
                "exit_code": bundle.exit_code,
                "report": report.model_dump(mode="json", by_alias=True),
            }
        )
        current.show(figures_table(report), "", gates_table(report), "", verdict_banner(report))
        current.line(f"{bundle.outcome}: {headline(report)}; see {bundle.path}/report.html")
        raise typer.Exit(bundle.exit_code)
