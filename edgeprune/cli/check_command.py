"""`edgeprune check`: the gates on any ONNX file, before it ships. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from edgeprune.cli.options import Json, Quiet, TargetName, Verbose
from edgeprune.cli.session import require_place, session, write_text

Share: TypeAlias = float | None


def _file(name: str, text: str, metavar: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, help=text, show_default=False
    )
    return option


def check_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx", help="The build.", show_default=False)
    ],
    target: TargetName = "local",
    baseline: Annotated[
        Path | None,
        _file("--baseline", "The model that the build replaces.", "B.onnx"),
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", min=0, help="Largest median latency, ms.")
    ] = None,
    latency_p90_ms: Annotated[
        float | None, typer.Option("--latency-p90-ms", min=0, help="Largest 90th percentile, ms.")
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", min=0, help="Least baseline / build; 0.95 allows 5 % slower."),
    ] = None,
    size_mib: Annotated[
        float | None, typer.Option("--size-mib", min=0, help="Largest size, MiB.")
    ] = None,
    size_ratio: Annotated[
        float | None, typer.Option("--size-ratio", min=0, help="Largest size, build / baseline.")
    ] = None,
    data: Annotated[
        Path | None,
        _file("--data", "Samples: an .npz of arrays by input name, and 'target'.", "X.npz"),
    ] = None,
    accuracy_min: Annotated[
        Share, typer.Option("--accuracy-min", min=0, max=1, help="Least accuracy, 0-1.")
    ] = None,
    accuracy_drop: Annotated[
        Share,
        typer.Option("--accuracy-drop", min=0, max=1, help="Largest drop below the baseline, 0-1."),
    ] = None,
    max_flips: Annotated[
        Share,
        typer.Option("--max-flips", min=0, max=1, help="Largest share of changed predictions."),
    ] = None,
    parity: Annotated[
        Path | None, _file("--parity", "Recorded inputs and outputs, as in a bundle.", "P.npz")
    ] = None,
    imported: Annotated[
        Path | None,
        _file(
            "--import",
            "Times from the device: of edgeprune bench --save, or a CSV of onnxruntime_perf_test.",
            "FILE",
        ),
    ] = None,
    junit: Annotated[
        Path | None, _file("--junit", "Write the verdicts as JUnit XML there.", "FILE")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Judge an ONNX file by the limits that are given; what is not asked for is named.

    Operators that the target takes are always judged, and with --baseline the contract: names,
    order, dtypes and axes of inputs and outputs. A target that this machine is not gets no
    latency: the verdict is inconclusive (exit code 3) and says how to measure on the device.
    """
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        from edgeprune.cli.progress import terminal_progress
        from edgeprune.cli.tables import outcome_text, verdicts_table
        from edgeprune.gates.check import Limits, Request, check
        from edgeprune.gates.latency_check import LatencyLimits
        from edgeprune.gates.verdict import exit_code
        from edgeprune.release.junit import verdicts_as_junit
        from edgeprune.release.report import VerdictRow
        from edgeprune.targets import load_target

        limits = Limits(
            latency=LatencyLimits(p50_ms=latency_ms, p90_ms=latency_p90_ms, speedup=speedup),
            size_mib=size_mib,
            size_ratio=size_ratio,
            accuracy_min=accuracy_min,
            accuracy_drop=accuracy_drop,
            flips=max_flips,
        )
        require_place(junit)
        profile = load_target(target)
        request = Request(
            model=model,
            target=profile,
            limits=limits,
            baseline=baseline,
            data=data,
            parity=parity,
            imported=imported,
        )
        with terminal_progress(quiet=quiet) as progress:
            found = check(
                request,
                stage=progress.stage,
                step=lambda done, total: progress.step(done, total, "rounds"),
            )
        rows = tuple(VerdictRow.of(verdict) for verdict in found.verdicts)
        code = exit_code(found.verdicts)
        if junit is not None:
            about = {"model": str(model), "target": profile.name}
            write_text(junit, verdicts_as_junit(rows, about))
        current.data(
            {
                "model": str(model),
                "target": profile.name,
                "exit_code": code,
                "verdicts": [row.model_dump(mode="json") for row in rows],
                "not_judged": list(found.not_judged),
            }
        )
        notes = [f"not judged: {note}" for note in found.not_judged]
        current.show(verdicts_table(rows), "", *notes, "")
        current.line(f"{outcome_text(code)}: {model} for {profile.name}")
        raise typer.Exit(code)
