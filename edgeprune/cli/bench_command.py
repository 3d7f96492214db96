"""`edgeprune bench`: time ONNX files side by side, with intervals. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli.options import Json, Quiet, TargetName, Verbose
from edgeprune.cli.session import JsonValue, require_place, session, write_text

if TYPE_CHECKING:
    from edgeprune.measure.lineup import Lineup


def bench_command(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="A.onnx [B.onnx ...]",
            help="One file, or several to compare with the first.",
            show_default=False,
        ),
    ],
    target: TargetName = "local",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads. Default: the target's.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Samples an inference. Default: as above.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            min=2,
            help="Fresh processes a file. Default: as many as the spread of a pilot asks for.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FILE",
            help="Write every sample there, for `edgeprune check --import` on another machine.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Time files by turns, each in a fresh process a round, and compare them with the first.

    p90 is shown where every process made the 64 runs that it takes to claim one.
    """
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        import dataclasses

        from edgeprune.cli.progress import terminal_progress
        from edgeprune.cli.tables import table
        from edgeprune.measure.here import cpu_flags
        from edgeprune.measure.lineup import measure_lineup
        from edgeprune.measure.saved import saved_text
        from edgeprune.measure.settings import settings_for
        from edgeprune.recipe.onnx_file import read_model
        from edgeprune.targets import load_target, override

        profile = override(load_target(target), threads=threads, batch=batch)
        settings = settings_for(profile)
        if rounds is not None:
            pilot = min(settings.pilot_pairs, rounds)
            settings = dataclasses.replace(
                settings, pilot_pairs=pilot, least_pairs=rounds, most_pairs=rounds
            )
        for model in models:
            read_model(model)
        require_place(save)
        with terminal_progress(quiet=quiet) as progress:
            progress.stage("measure latency")
            lineup = measure_lineup(
                models,
                profile,
                settings,
                progress=lambda done, total: progress.step(done, total, "rounds"),
            )
        if save is not None:
            write_text(save, saved_text(lineup, sorted(cpu_flags())))
        rows = [_row(lineup, index) for index in range(len(models))]
        current.data({"target": profile.name, "threads": lineup.threads, "models": rows})
        head = ("model", "p50 ms", "95 %", "p90 ms", "times as fast", "95 %")
        current.show(table("", head, [_cells(row) for row in rows], "l r r r r r"), "")
        current.line(_line(rows))


def _row(lineup: Lineup, index: int) -> dict[str, JsonValue]:
    """One model's figures; the ratio is first / this, so above 1 is faster than the first."""
    from edgeprune.measure.intervals import latency_ms, ratio, runs_needed

    samples = lineup.samples[index]
    median = latency_ms(samples)
    enough = median.least_runs >= runs_needed(90.0)
    row: dict[str, JsonValue] = {
        "model": str(lineup.models[index]),
        "p50_ms": median.ms,
        "p50_interval_ms": [median.low_ms, median.high_ms],
        "p90_ms": latency_ms(samples, 90.0).ms if enough else None,
        "processes": median.processes,
        "runs_a_process": median.least_runs,
    }
    if index:
        found = ratio(lineup.pair(0, index))
        row |= {"speedup": found.ratio, "speedup_interval": [found.low, found.high]}
    return row


def _cells(row: dict[str, JsonValue]) -> tuple[str, ...]:
    return (
        str(row["model"]),
        _number(row["p50_ms"]),
        _interval(row["p50_interval_ms"]),
        _number(row["p90_ms"]),
        _number(row.get("speedup")),
        _interval(row.get("speedup_interval")),
    )


def _number(value: JsonValue) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "-"


def _interval(value: JsonValue) -> str:
    return f"[{value[0]:.3g}, {value[1]:.3g}]" if isinstance(value, list) else ""


def _line(rows: list[dict[str, JsonValue]]) -> str:
    first = f"{rows[0]['model']}: median {_number(rows[0]['p50_ms'])} ms"
    others = [
        f"{row['model']}: {_number(row['speedup'])} times as fast "
        f"{_interval(row['speedup_interval'])}"
        for row in rows[1:]
    ]
    return "; ".join([first, *others])
