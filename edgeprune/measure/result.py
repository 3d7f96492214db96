"""What travels between a runner and its worker: a job one way, one complete result back.

A result counts when it is complete: it parses, carries the job's nonce, the hash of the job's
model and the end marker. Exit codes count for nothing: remote shells return 0 for a process
that was cut off.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.measure.samples import Job, Samples

END_MARKER = "edgeprune-result-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Either samples, or the reason why the model was refused."""

    nonce: str
    samples: Samples | None
    refusal: str | None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def job_to_json(nonce: str, job: Job) -> str:
    """A job and the nonce that its result must carry, as JSON."""
    return json.dumps({"nonce": nonce, "job": asdict(job)})


def job_from_json(text: str) -> tuple[str, Job]:
    """The nonce and the job written by `job_to_json`."""
    table = json.loads(text)
    job = table["job"]
    options = tuple((str(key), str(value)) for key, value in job.pop("session_options"))
    return str(table["nonce"]), Job(**job, session_options=options)


def result_to_json(result: Result) -> str:
    """A result as JSON; the end marker is its last key, so that a cut-off file is seen."""
    return json.dumps({**asdict(result), "end": END_MARKER})


def samples_from_json(text: str, *, nonce: str, job: Job) -> Samples:
    """The samples in a complete result of `job`.

    Raises UsageError with the worker's own message if it refused the model, and
    EnvironmentFailed, saying what is missing, if the result is not complete.
    """
    try:
        table = json.loads(text)
        found = {"nonce": table["nonce"], "end": table["end"]}
        refusal = table["refusal"]
        samples = None if table["samples"] is None else _samples(table["samples"])
    except (ValueError, KeyError, TypeError) as error:
        raise _incomplete(job, "a whole result", f"{len(text)} characters of none") from error
    for key, expected in (("nonce", nonce), ("end", END_MARKER)):
        if found[key] != expected:
            raise _incomplete(job, f"{key} '{expected}'", f"'{found[key]}'")
    if refusal is not None:
        raise UsageError(str(refusal), where=job.model)
    if samples is None or not samples.times_ms:
        raise _incomplete(job, "at least one timed run", "none")
    if samples.model_sha256 != job.model_sha256:
        raise _incomplete(
            job, f"a model with sha256 {job.model_sha256}", f"one with {samples.model_sha256}"
        )
    return samples


def _samples(table: dict[str, object]) -> Samples:
    times = table["times_ms"]
    if not isinstance(times, list):
        raise TypeError("times_ms is not a list")
    return Samples(
        model_sha256=str(table["model_sha256"]),
        times_ms=tuple(float(time) for time in times),
        load_ms=float(str(table["load_ms"])),
        first_ms=float(str(table["first_ms"])),
        peak_rss_mib=float(str(table["peak_rss_mib"])),
        onnxruntime=str(table["onnxruntime"]),
    )


def _incomplete(job: Job, expected: str, got: str) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"measuring failed at {job.model}: expected {expected}, got {got}. Measure again.",
        where=job.model,
    )
