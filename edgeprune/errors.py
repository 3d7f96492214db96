"""Every error that edgeprune raises on purpose.

EdgepruneError
├── UsageError            2   the caller can mend it: command line, recipe, data, user code
│   ├── RecipeError           a recipe key, value or file
│   ├── DataError             a split, a batch, a metric or a loss
│   │   └── OutputsNotFinite      a file answers finite samples with NaN or infinity
│   ├── UserCodeError         the user's factory, metric or loss raised; the cause is chained
│   └── PlanError             a plan that does not fit, or asks for what cannot be
├── BudgetNotMet          1   the budget is out of reach, whatever is removed
├── ModelNotSupported     4   torch.export cannot take the model, or what it took differs from eager
│   ├── DrawsNumbers          in eval mode it gives other outputs for the same inputs
│   └── NothingToRemove       every unit is pinned: there is no group
├── EnvironmentFailed     5   device, disk, a missing package
└── InternalError        70   our bug
    └── ProofFailed           a shrunk model is not the silenced dense model

A caller catches one class, `EdgepruneError`; a script reads `exit_code`.
Messages read `<what failed> at <where>: expected <x>, got <y>. <one thing to do>.`
"""

from __future__ import annotations

from typing import ClassVar


class EdgepruneError(Exception):
    """Base of every error raised on purpose.

    `where` is the culprit (a node, parameter, recipe key or `file:line`), kept as an attribute
    for programs; the message already contains it.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(message)
        self.where = where


class UsageError(EdgepruneError):
    """The caller can mend it: command line, recipe, data or user code."""

    exit_code: ClassVar[int] = 2


class RecipeError(UsageError):
    """A recipe key has a wrong name, type or value, or names a file that is not there."""


class DataError(UsageError):
    """A split is empty, not re-iterable, or its shapes, dtypes or values do not fit."""


class OutputsNotFinite(DataError):
    """A file's outputs are NaN or infinite for samples that are finite; `where` is the file."""


class UserCodeError(UsageError):
    """The user's own factory, metric or loss raised; the original error is the `__cause__`."""


class PlanError(UsageError):
    """A plan does not belong to this model, or asks for a removal that is not possible."""


class BudgetNotMet(EdgepruneError):
    """Even the smallest model that the removals allow misses the budget; says what it reaches."""

    exit_code: ClassVar[int] = 1


class ModelNotSupported(EdgepruneError):
    """The model cannot be captured, or the captured graph does not compute what eager does."""

    exit_code: ClassVar[int] = 4


class DrawsNumbers(ModelNotSupported):
    """The model itself gives other outputs for the same inputs: no graph is to blame."""


class NothingToRemove(ModelNotSupported, PlanError):
    """Every unit of the model is pinned, so no plan can remove one; the reasons are in the text."""

    exit_code: ClassVar[int] = 4


class EnvironmentFailed(EdgepruneError):
    """The device, the disk or the installation is at fault, not the recipe."""

    exit_code: ClassVar[int] = 5


class InternalError(EdgepruneError):
    """edgeprune itself is wrong; nothing is delivered but the report."""

    exit_code: ClassVar[int] = 70


class ProofFailed(InternalError):
    """The shrunk model's output differs from the silenced dense model's."""


def require_a(kind: type, value: object, where: str, remedy: str) -> None:
    """UsageError where an argument is of another class: require_a(Plan, None, "shrink", "...")."""
    if not isinstance(value, kind):
        raise UsageError(
            f"{where}: expected {kind.__name__}, got {type(value).__name__}. {remedy}", where=where
        )
