"""`edgeprune run`: the whole pipeline from a recipe to a judged bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli.options import Json, Quiet, Verbose
from edgeprune.cli.session import Session, session

if TYPE_CHECKING:
    from edgeprune.recipe.schema import Recipe


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
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would be removed, in which rounds, and about how much time and memory "
            "it takes. Nothing is trained or written.",
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Prune by a recipe, export, judge, and leave a bundle with the evidence.

    Several rounds of score, remove, prove and recover with an accuracy guard; then ONNX, gates for
    latency, accuracy, size and parity on ONNX Runtime, and a folder with model, plan and report.
    A run that was interrupted goes on where it stopped when the same command is given again.
    """
    # Read by OpenMP when torch loads: a waiting thread sleeps. Spinning, the default, makes
    # training several times slower as soon as anything else runs on one of the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    hint = "The finished steps are kept: the same command goes on after the last one."
    with session(json=json, quiet=quiet, verbose=verbose, interrupted=hint) as current:
        from edgeprune.recipe.schema import load_recipe

        loaded = load_recipe(recipe)
        if dry:
            _think_through(loaded, target, current, quiet=quiet)
        else:
            place = out or Path("build") / loaded.path.parent.name
            _carry_out(loaded, place, target, current, fresh=fresh, quiet=quiet)


def _carry_out(
    recipe: Recipe, out: Path, target: str | None, current: Session, *, fresh: bool, quiet: bool
) -> None:
    from edgeprune.cli.progress import terminal_progress
    from edgeprune.cli.tables import figures_table, gates_table, verdict_banner
    from edgeprune.pipeline.run import run
    from edgeprune.release.wording import headline

    with terminal_progress(quiet=quiet) as progress:
        bundle = run(recipe, out=out, target=target, fresh=fresh, progress=progress)
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


def _think_through(recipe: Recipe, target: str | None, current: Session, *, quiet: bool) -> None:
    from edgeprune.cli.outlook import as_json, headline, tables
    from edgeprune.cli.progress import terminal_progress
    from edgeprune.pipeline.dry_run import dry_run

    with terminal_progress(quiet=quiet) as progress:
        outlook = dry_run(recipe, target=target, progress=progress)
    current.data(as_json(outlook))
    current.show(*tables(outlook))
    current.line(headline(outlook))
