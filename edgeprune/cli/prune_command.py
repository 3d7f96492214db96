"""`edgeprune prune`: one shot without data: plan, shrink, prove, save."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.options import ExactOnly, InputShapes, Json, Model, Quiet, Verbose, Weights
from edgeprune.cli.session import session


class Allocation(enum.StrEnum):
    """How the share of units kept is spread."""

    UNIFORM = "uniform"
    GLOBAL = "global"


def prune_command(
    model: Model,
    keep: Annotated[
        float,
        typer.Option(
            "--keep",
            min=0.0,
            max=1.0,
            help="Share of units kept, 0-1: of every group, or of all units with "
            "--allocation global.",
        ),
    ] = 0.5,
    criterion: Annotated[
        str, typer.Option("--criterion", help="What scores units: l1, l2 or random.")
    ] = "l2",
    allocation: Annotated[
        Allocation, typer.Option("--allocation", help="Spread the share evenly or by score.")
    ] = Allocation.UNIFORM,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PATTERN",
            help="Shrink only widths made by weights of such names, e.g. 'layer4.*'; repeatable.",
            show_default=False,
        ),
    ] = None,
    keep_whole: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-whole",
            metavar="PATTERN",
            help="Take nothing from tensors of such names; repeatable.",
            show_default=False,
        ),
    ] = None,
    fraction: Annotated[
        list[str] | None,
        typer.Option(
            "--fraction",
            metavar="PATTERN=SHARE",
            help="Share of units kept of widths made by such weights, instead of --keep; "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
    min_width: Annotated[
        list[str] | None,
        typer.Option(
            "--min-width",
            metavar="[PATTERN=]N",
            help="Fewest units left of a width, of all or of such; repeatable.",
            show_default=False,
        ),
    ] = None,
    multiple: Annotated[
        int, typer.Option("--multiple", min=1, max=256, help="Keep widths at multiples of this.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Write model.onnx, weights.safetensors, plan.json and the report there, and judge "
            "parity. Default: nothing is written.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    input: InputShapes = None,  # noqa: A002 (the option's name)
    exact_only: ExactOnly = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of example inputs and random scores.")
    ] = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Remove units once, prove the result, and save it with --out. Nothing is trained."""
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        import time

        from edgeprune.cli.pairs import by_pattern
        from edgeprune.cli.progress import terminal_progress
        from edgeprune.cli.tables import figures_table, gates_table
        from edgeprune.pipeline.one_shot import OneShot, deliver, report_of
        from edgeprune.recipe.model import load_model
        from edgeprune.release.bundle import check_destination
        from edgeprune.release.wording import headline, proof_sentences
        from edgeprune.surgery.prune import prune

        fractions = by_pattern("--fraction", fraction or [], float, "PATTERN=SHARE")
        floors = by_pattern("--min-width", min_width or [], int, "[PATTERN=]N")
        if out is not None:
            check_destination(out)
        with terminal_progress(quiet=quiet) as progress:
            progress.stage("loading the model")
            loaded = load_model(model, weights=weights, input=input, seed=seed)
            progress.stage("pruning and proving")
            start = time.perf_counter()
            pruned = prune(
                loaded.module,
                loaded.args,
                loaded.kwargs,
                keep_fraction=keep,
                criterion=criterion,
                allocation=allocation.value,
                multiple=multiple,
                keep=tuple(keep_whole or ()),
                only=tuple(only or ()),
                fractions=fractions,
                min_width=floors,
                exact_only=exact_only,
                seed=seed,
            )
            seconds = time.perf_counter() - start
            shot = OneShot(name=loaded.name, pruned=pruned, seed=seed, seconds=seconds)
            if out is None:
                report, code = report_of(shot, None, ()), 0
            else:
                progress.stage("exporting and judging parity")
                bundle = deliver(shot, out)
                report, code = bundle.report, bundle.exit_code
        current.data(
            {
                "bundle": None if out is None else str(out),
                "exit_code": code,
                "report": report.model_dump(mode="json", by_alias=True),
            }
        )
        current.show(figures_table(report), "", *proof_sentences(report), "")
        if report.verdicts:
            current.show(gates_table(report), "")
        current.line(f"{loaded.name}: {headline(report)}" + (f"; {out}" if out else ""))
        raise typer.Exit(code)
