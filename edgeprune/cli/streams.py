"""The program's stdout: kept clear for one JSON document, and closed by whoever reads it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sys
from collections.abc import Iterator
from typing import NoReturn

CLOSED_PIPE = 141
"""Exit code where the reader of a pipe went away: 128 + SIGPIPE, what a shell reports of any
program that this ends. Not 1, which would say that a gate failed."""

_STDOUT, _STDERR = 1, 2


@contextlib.contextmanager
def stdout_goes_to_stderr(wanted: bool) -> Iterator[None]:
    """While the body runs, what anybody prints on stdout goes to stderr, if that is wanted.

    Anybody: Python code that prints, and C code and child processes that write to descriptor 1.
    """
    if not wanted:
        yield
        return
    with _descriptor_goes_to_stderr(), contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _descriptor_goes_to_stderr() -> Iterator[None]:
    stdout = sys.stdout
    if not _are_the_process_own():
        yield
        return
    stdout.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):  # then stderr is closed, and nobody reads it
            stdout.flush()
        # What C code printed lies in a buffer of C's own, and would come out after the document.
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, _STDOUT)
        os.close(kept)


def _are_the_process_own() -> bool:
    """Whether the two streams are the process's descriptors, and not a test's or a notebook's."""
    try:
        return (sys.stdout.fileno(), sys.stderr.fileno()) == (_STDOUT, _STDERR)
    except (OSError, ValueError, AttributeError):  # None, where the shell closed a stream
        return False


def is_closed_pipe(error: BaseException) -> bool:
    """Whether an error comes from writing to stdout or stderr after its reader went (`| head`).

    A broken pipe of the user's own, to a worker say, is not meant.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, BrokenPipeError):
            return any(_reader_is_gone(stream) for stream in (_STDOUT, _STDERR))
        if isinstance(link, SystemExit) and isinstance(link.__context__, BrokenPipeError):
            return True  # rich: it has put the null device into the pipe's place already
        link = link.__cause__ or link.__context__
    return False


def end_by_closed_pipe() -> NoReturn:
    """End quietly; what is still in a buffer goes nowhere, where it would fail once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (_STDOUT, _STDERR):
        if _reader_is_gone(stream):
            os.dup2(null, stream)
    raise SystemExit(CLOSED_PIPE)


def _reader_is_gone(stream: int) -> bool:
    poll = select.poll()
    poll.register(stream, 0)  # errors are told without being asked for
    return any(event & select.POLLERR for _, event in poll.poll(0))
