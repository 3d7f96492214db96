"""The program `edgeprune`: its commands, and what holds for all of them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from edgeprune import __version__
from edgeprune.cli.bench_command import bench_command
from edgeprune.cli.check_command import check_command
from edgeprune.cli.inspect_command import inspect_command
from edgeprune.cli.prune_command import prune_command
from edgeprune.cli.run_command import run_command
from edgeprune.cli.session import INTERRUPTED, as_json, error_document
from edgeprune.cli.streams import CLOSED_PIPE, end_by_closed_pipe, is_closed_pipe
from edgeprune.cli.targets_command import targets_app
from edgeprune.cli.verify_command import verify_command
from edgeprune.errors import UsageError

app = typer.Typer(
    name="edgeprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 passed, 1 a gate failed, 2 usage, recipe, data or user code, "
    "3 inconclusive, 4 model not supported, 5 environment, 70 internal error, 130 interrupted, "
    "141 the reader of a pipe went away.",
)
app.command("run")(run_command)
app.command("inspect")(inspect_command)
app.command("prune")(prune_command)
app.command("check")(check_command)
app.command("bench")(bench_command)
app.command("verify")(verify_command)
app.add_typer(targets_app, name="targets")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeprune {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Prune a trained PyTorch model to a device budget, prove it, and judge the ONNX build."""


def main() -> None:
    """Run the program; leaves through SystemExit.

    After Ctrl-C it leaves at once: CPython remembers a KeyboardInterrupt that passed through an
    `exec` (importing torch does that), and would end by the signal although it was handled.
    """
    try:
        _run_program()
    except BrokenPipeError:
        end_by_closed_pipe()
    except SystemExit as end:
        if end.code == CLOSED_PIPE or is_closed_pipe(end):
            end_by_closed_pipe()
        if end.code == INTERRUPTED:
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


def _run_program() -> None:
    """Run the program and flush what it printed: at the interpreter's end nothing catches it."""
    try:
        app()
    except SystemExit as end:
        # The parser raises before a command has its session, so its document is printed here.
        if isinstance(end.__context__, typer.TyperException) and "--json" in sys.argv[1:]:
            error = UsageError(end.__context__.format_message(), where="command line")
            typer.echo(as_json(error_document(error)))
        if sys.stdout is not None:  # None: the shell closed it
            sys.stdout.flush()
        raise
