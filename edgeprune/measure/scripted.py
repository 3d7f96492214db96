"""A runner that measures nothing: it plays times from a script.

Tests of schedules, statistics and gates use it, ours and users' alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from edgeprune.measure.samples import Job, Samples

Script: TypeAlias = Callable[[Job, int], Sequence[float]]


class ScriptedRunner:
    """Answers job number i (from 0) with the times in milliseconds of `script(job, i)`.

    ScriptedRunner(lambda job, i: [2.0] * 100 if "dense" in job.model else [1.0] * 100)
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._jobs: list[Job] = []

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs done so far, in order."""
        return tuple(self._jobs)

    def run(self, job: Job) -> Samples:
        """Return the script's times for the next job."""
        times_ms = tuple(float(time_ms) for time_ms in self._script(job, len(self._jobs)))
        self._jobs.append(job)
        return Samples(
            model_sha256=job.model_sha256,
            times_ms=times_ms,
            load_ms=0.0,
            first_ms=0.0,
            peak_rss_mib=0.0,
            onnxruntime="scripted",
        )
