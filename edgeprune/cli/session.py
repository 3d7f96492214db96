"""One call of a command: where its words go, and how its errors end it.

Results go to stdout; progress, notes and errors to stderr. With --json stdout holds one JSON
document and nothing else, also when the command fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import typer

from edgeprune.errors import EdgepruneError, EnvironmentFailed, InternalError, UserCodeError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

JsonValue: TypeAlias = (
    "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)

INTERRUPTED = 130
_LOG_WIDTH = 120
_TORCH_EXTRA = ("torch", "onnxscript", "onnx_ir", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """How much to say, and in which form."""

    json: bool
    quiet: bool
    verbose: int

    def show(self, *blocks: RenderableType) -> None:
        """Print a person's result on stdout; nothing with --json or -q."""
        if not self.json and not self.quiet:
            for block in blocks:
                _console(stderr=False).print(block, soft_wrap=isinstance(block, str))

    def line(self, text: str) -> None:
        """Print the result's one line on stdout, with -q too; nothing with --json."""
        if not self.json:
            _console(stderr=False).print(text, soft_wrap=True, markup=False, highlight=False)

    def data(self, value: JsonValue) -> None:
        """Print the result as JSON on stdout, if that was asked for."""
        if self.json:
            typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@contextlib.contextmanager
def session(*, json: bool, quiet: bool, verbose: int, interrupted: str = "") -> Iterator[Session]:
    """Run a command's body; an error becomes one block on stderr and the exit code it carries.

    interrupted: what to do after Ctrl-C.
    """
    current = Session(json=json, quiet=quiet, verbose=verbose)
    try:
        yield current
    except KeyboardInterrupt:
        words = f"Interrupted. {interrupted}".rstrip()
        _console(stderr=True).print(words, style="bold yellow", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except (EdgepruneError, ModuleNotFoundError) as error:
        raise typer.Exit(_report(current, _known(error))) from None
    except typer.Exit:
        raise
    except (SystemExit, GeneratorExit) as error:  # nothing of ours raises them
        raise typer.Exit(_report(current, _ended(error))) from None
    except Exception as error:  # whatever else comes out is our bug
        raise typer.Exit(_report(current, _unexpected(error))) from None


def require_place(path: Path | None) -> None:
    """Before any work: EnvironmentFailed where a file that the user named could not be written."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir():
        got = "a folder"
    elif not folder.is_dir():
        got = f"no folder {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        got = "no right to write there"
    else:
        return
    raise EnvironmentFailed(
        f"writing at {path}: expected a place that can be written, got {got}. Choose another.",
        where=str(path),
    )


def write_text(path: Path, text: str) -> None:
    """Write a file that the user named; EnvironmentFailed where the disk refuses."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentFailed(
            f"writing at {path}: expected a place that can be written, got {error.strerror}. "
            f"Choose another.",
            where=str(path),
        ) from error


def _known(error: EdgepruneError | ModuleNotFoundError) -> EdgepruneError:
    """A missing package of the torch extra is the installation's fault; another is our bug."""
    if isinstance(error, EdgepruneError):
        return error
    package = (error.name or "").partition(".")[0]
    if package not in _TORCH_EXTRA:
        return _unexpected(error)
    missing = EnvironmentFailed(
        f"starting the command at the package {package}: expected it to be installed, got none. "
        f'Install it with: pip install "edgeprune[torch]"',
        where=package,
    )
    missing.__cause__ = error
    return missing


def _ended(error: BaseException) -> UserCodeError:
    """The user's code ended the program, which would pass for a result."""
    from edgeprune.recipe.factory import last_line

    place = last_line(error) or "the user's code"
    wrapped = UserCodeError(
        f"running the command at {place}: expected code that returns or raises an error, got "
        f"{type(error).__name__}({error}). Raise an error instead.",
        where=place,
    )
    wrapped.__cause__ = error
    return wrapped


def _unexpected(error: Exception) -> InternalError:
    wrapped = InternalError(
        f"running the command: expected no error of this kind, got {type(error).__name__}: "
        f"{error}. This is a bug of edgeprune; report the traceback above."
    )
    wrapped.__cause__ = error
    return wrapped


def _report(current: Session, error: EdgepruneError) -> int:
    """Print an error as one block and return its exit code."""
    internal = isinstance(error, InternalError)
    if internal or current.verbose >= 2:
        traceback.print_exception(error, file=sys.stderr)
    console = _console(stderr=True)
    console.print(f"{type(error).__name__}", style="bold red", end=": ")
    console.print(str(error), soft_wrap=True, markup=False, highlight=False)
    if error.__cause__ is not None and not internal and current.verbose < 2:
        console.print("Run again with -vv for the traceback.", style="dim")
    current.data(
        {
            "error": {
                "type": type(error).__name__,
                "message": str(error),
                "where": error.where,
                "exit_code": error.exit_code,
            }
        }
    )
    return error.exit_code


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _LOG_WIDTH
    return console
