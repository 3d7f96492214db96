"""How a run says where it is. No torch: the command line draws it, tests record it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by the pipeline as it goes; what it does with that is its own affair."""

    def stage(self, name: str) -> None:
        """Begin a stage such as "round 2 of 4: recover"; the last one is over."""
        ...

    def step(self, done: int, total: int, text: str) -> None:
        """Count `done` of `total` (0: unknown) in the stage; `text` is such as "loss 0.31"."""
        ...

    def note(self, text: str) -> None:
        """One line worth keeping, such as "round 2: accepted, accuracy 0.912"."""
        ...


class Silent:
    """A Progress that says nothing."""

    def stage(self, name: str) -> None:
        """Say nothing."""

    def step(self, done: int, total: int, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
