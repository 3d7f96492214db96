"""`edgeprune targets`: the device profiles there are, what one says, what this machine is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.options import Json, Quiet, Verbose
from edgeprune.cli.session import session, write_text

targets_app = typer.Typer(
    no_args_is_help=True, help="Device profiles: list them, show one, describe this machine."
)


@targets_app.command("list")
def list_command(json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> None:
    """List the profiles that ship, and whether this machine can measure for them."""
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        from edgeprune.cli.tables import table
        from edgeprune.measure.here import why_not_here
        from edgeprune.targets import read_target, target_names

        found = [read_target(name) for name in target_names()]
        reasons = [why_not_here(target) for target in found]
        current.data(
            {
                "targets": [
                    {
                        "name": target.name,
                        "status": target.status,
                        "arch": target.cpu.arch,
                        "channel_multiple": target.pruning.channel_multiple,
                        "measurable_here": reason is None,
                        "why_not": reason,
                    }
                    for target, reason in zip(found, reasons, strict=True)
                ]
            }
        )
        rows = [
            (
                target.name,
                target.status,
                target.cpu.arch or "any",
                str(target.pruning.channel_multiple),
                "yes" if reason is None else f"no: {reason}",
            )
            for target, reason in zip(found, reasons, strict=True)
        ]
        head = ("target", "status", "arch", "widths in", "can be measured here")
        current.show(table("", head, rows, "l l l r l"), "")
        current.line(f"{len(found)} targets; a path of a .toml file is a target too")


@targets_app.command("show")
def show_command(
    name: Annotated[
        str, typer.Argument(metavar="TARGET", help="A name or a .toml file.", show_default=False)
    ],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Show all that a profile says, defaults included, with its sources."""
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        from edgeprune.cli.tables import table
        from edgeprune.measure.here import how_to_measure, why_not_here
        from edgeprune.targets import read_target

        target = read_target(name)
        reason = why_not_here(target)
        plain = target.model_dump(mode="json")
        current.data({**plain, "measurable_here": reason is None, "why_not": reason})
        rows = [
            (f"{section}.{key}", _shown(value))
            for section, values in plain.items()
            if isinstance(values, dict)
            for key, value in values.items()
            if value not in (None, [], {})
        ]
        current.show(table("", ("key", "value"), rows), "")
        current.show(*(f"source: {source}" for source in target.sources), "")
        if reason is None:
            current.line(f"{target.name} ({target.status}): this machine can measure for it")
            return
        advice = how_to_measure(target, "MODEL.onnx")
        current.line(f"{target.name} ({target.status}): not measured here, {reason}. {advice}")


@targets_app.command("probe")
def probe_command(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there. Default: stdout."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Describe this machine as a profile: processor, caches, memory, system, runtime."""
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        import tomllib

        from edgeprune.measure.here import profile_of_this_machine

        text = profile_of_this_machine()
        current.data(tomllib.loads(text))
        if out is None:
            current.line(text.rstrip())
        else:
            write_text(out, text)
            current.line(f"{out}: a profile of this machine")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return str(value)
