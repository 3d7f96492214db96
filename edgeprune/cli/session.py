"""One call of a command: where its words go, and how its errors end it.

Results go to stdout; progress, notes and errors to stderr. With --json stdout holds one JSON
document and nothing else, also when the command fails: what the user's own code prints meanwhile
goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import typer

from edgeprune.cli.streams import CLOSED_PIPE, is_closed_pipe, stdout_goes_to_stderr
from edgeprune.errors import EdgepruneError, EnvironmentFailed, InternalError, UserCodeError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

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
    _documents: list[str] = field(default_factory=list, init=False)

    def show(self, *blocks: RenderableType) -> None:
        """Print a person's result on stdout; nothing with --json or -q."""
        if not self.json and not self.quiet:
            for block in blocks:
                _console(stderr=False).print(block, soft_wrap=isinstance(block, str))

    @property
    def width(self) -> int:
        """Columns of stdout; 120 where it is no terminal and nobody says COLUMNS."""
        return _console(stderr=False).width

    def lines(self, texts: Sequence[Text]) -> None:
        """Print lines that are wrapped already on stdout; nothing with --json or -q."""
        if not self.json and not self.quiet:
            console = _console(stderr=False)
            for text in texts:
                console.print(text, soft_wrap=True, highlight=False)

    def line(self, text: str) -> None:
        """Print the result's one line on stdout, with -q too; nothing with --json."""
        if not self.json:
            _console(stderr=False).print(text, soft_wrap=True, markup=False, highlight=False)

    def data(self, value: JsonValue) -> None:
        """Keep the result as JSON for stdout, if that was asked for; the last one counts."""
        if self.json:
            self._documents.append(as_json(value))

    def deliver(self) -> None:
        """Print the document on stdout, when the command's body is over."""
        if self._documents:
            typer.echo(self._documents[-1])


def as_json(value: JsonValue) -> str:
    """The text of a JSON document that stdout can hold, whatever its encoding."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.__stdout__, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # a terminal of another language, or a file name of odd bytes
        return json.dumps(value, indent=2, allow_nan=False)
    return text


def error_document(error: EdgepruneError) -> JsonValue:
    """What --json says of a command that failed."""
    return {
        "error": {
            "type": type(error).__name__,
            "message": str(error),
            "where": error.where,
            "exit_code": error.exit_code,
        }
    }


@contextlib.contextmanager
def session(*, json: bool, quiet: bool, verbose: int, interrupted: str = "") -> Iterator[Session]:
    """Run a command's body; an error becomes one block on stderr and the exit code it carries.

    interrupted: what to do after Ctrl-C.
    """
    current = Session(json=json, quiet=quiet, verbose=verbose)
    try:
        with stdout_goes_to_stderr(json), _errors_as_exits(current, interrupted):
            yield current
    finally:
        current.deliver()


@contextlib.contextmanager
def _errors_as_exits(current: Session, interrupted: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        words = f"Interrupted. {interrupted}".rstrip()
        _console(stderr=True).print(words, style="bold yellow", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except typer.Exit:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        if is_closed_pipe(error):  # the reader has enough, and nothing is wrong
            raise typer.Exit(CLOSED_PIPE) from None
        raise typer.Exit(_report(current, _named(error))) from None


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


def _named(error: BaseException) -> EdgepruneError:
    """An error as one of ours, whose exit code tells whose fault it is."""
    if isinstance(error, EdgepruneError | ModuleNotFoundError):
        return _known(error)
    if isinstance(error, Exception):  # whatever else comes out is our bug
        return _unexpected(error)
    return _ended(error)  # nothing of ours ends the program from within


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
    current.data(error_document(error))
    return error.exit_code


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _LOG_WIDTH
    return console
