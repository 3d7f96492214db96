"""Progress as a person sees it: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edgeprune.pipeline import progress


class Terminal:
    """The pipeline's Progress on stderr: one live bar, notes above it.

    Where stderr is not a terminal, stages and notes are plain lines and steps are left out.
    """

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("starting", total=None, text="")

    def stage(self, name: str) -> None:
        """Begin a stage: the bar starts over under its name."""
        self._bar.reset(self._task, description=name, total=None, text="")
        if not self._console.is_terminal:
            self._console.print(name, markup=False, highlight=False, soft_wrap=True)

    def step(self, done: int, total: int, text: str) -> None:
        """Move the bar; a total of 0 is one that nobody knows."""
        self._bar.update(self._task, completed=done, total=total or None, text=text)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def terminal_progress(*, quiet: bool) -> Iterator[progress.Progress]:
    """A Progress for the length of a command; silent with -q."""
    if quiet:
        yield progress.Silent()
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield Terminal(console, bar)
