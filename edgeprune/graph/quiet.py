"""Run a talkative exporter of torch in silence, and keep what it said for the error message."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

_LOGGERS = ("torch", "onnxscript", "onnx_ir", "onnx")


@dataclass(slots=True)
class Transcript:
    """What was printed, logged or warned, in no particular order."""

    lines: list[str] = field(default_factory=list)

    def tail(self, count: int = 3) -> str:
        """The last `count` lines in one, for an error message; empty when there are none."""
        return " | ".join(self.lines[-count:])


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


@contextlib.contextmanager
def quietly() -> Iterator[Transcript]:
    """Send prints, warnings and log records of torch and onnx into the transcript."""
    transcript, text = Transcript(), io.StringIO()
    collector = _Collector(transcript.lines)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [collector], False
        with (
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            yield transcript
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        transcript.lines.extend(str(warning.message) for warning in caught)
        transcript.lines.extend(line for line in text.getvalue().splitlines() if line.strip())
