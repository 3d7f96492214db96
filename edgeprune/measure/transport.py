"""The seam between a measurement and where it happens: one method that does one job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from edgeprune.measure.registry import Registry
from edgeprune.measure.samples import Job, Samples

if TYPE_CHECKING:
    from edgeprune.targets import Target


class Runner(Protocol):
    """Does one job in one fresh process, wherever that is."""

    def run(self, job: Job) -> Samples:
        """Do `job` and return what was measured, complete.

        Raises UsageError if ONNX Runtime or the target refuses the model, and
        EnvironmentFailed if there is no complete result for any other reason.
        """
        ...


RunnerFactory: TypeAlias = "Callable[[Target], Runner]"

_RUNNERS: Registry[RunnerFactory] = Registry(kind="runner", package="edgeprune.measure.runners")

runner = _RUNNERS.register
runner_names = _RUNNERS.names


def find_runner(target: Target) -> Runner:
    """The runner for the target's transport, made for that target."""
    return _RUNNERS.find(target.device.transport)(target)
