"""Measure on this machine: one fresh Python process a job, torch never loaded into it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from edgeprune.errors import EnvironmentFailed
from edgeprune.measure.result import job_to_json, samples_from_json
from edgeprune.measure.samples import Job, Samples
from edgeprune.measure.transport import runner
from edgeprune.targets import Target

_ROOT = Path(__file__).resolve().parents[3]
_TAIL_LINES = 5


class LocalRunner:
    """Runs `python -m edgeprune.measure.worker` and reads the result file that it leaves."""

    def __init__(self, *, python: str = sys.executable) -> None:
        self._python = python

    def run(self, job: Job) -> Samples:
        """Do the job in a new process; an interrupt or a timeout kills that process."""
        nonce = secrets.token_hex(8)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            job_file, result_file = Path(folder, "job.json"), Path(folder, "result.json")
            job_file.write_text(job_to_json(nonce, job), encoding="utf-8")
            # -P keeps the user's working directory off the import path: a `random.py` there
            # must not end up in the worker.
            command = [self._python, "-P", "-m", "edgeprune.measure.worker"]
            stderr = self._finish([*command, str(job_file), str(result_file)], job)
            if not result_file.exists():
                raise EnvironmentFailed(
                    f"measuring failed at {job.model}: expected a result from the worker "
                    f"process, got none; it said: {_tail(stderr)}. Check the installation with "
                    f"`{self._python} -c 'import onnxruntime'`.",
                    where=job.model,
                )
            return samples_from_json(result_file.read_text(encoding="utf-8"), nonce=nonce, job=job)

    def _finish(self, command: list[str], job: Job) -> str:
        """Run a command to its end and return what it wrote to stderr."""
        try:
            done = subprocess.run(
                command,
                check=False,  # success is a complete result, never an exit code
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=job.timeout_seconds,
                env=worker_environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFailed(
                f"measuring timed out at {job.model}: expected a result within "
                f"{job.timeout_seconds:g} s, got none; it said: {_tail(_text(error.stderr))}. "
                "Raise timeout_seconds or time fewer runs.",
                where=job.model,
            ) from error
        except OSError as error:
            raise EnvironmentFailed(
                f"measuring cannot start at {command[0]}: expected a Python interpreter, "
                f"got {error.strerror}. Check the installation.",
                where=command[0],
            ) from error
        return done.stderr


@runner("local")
def local(_target: Target) -> LocalRunner:
    """This machine. Threads were checked against its cores when the target was loaded."""
    return LocalRunner()


def worker_environment() -> dict[str, str]:
    """Our environment; from a source checkout also the way to this package.

    An installed package is found anyway, and its site-packages must not move ahead of the
    standard library.
    """
    environment = dict(os.environ)
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    if _ROOT not in installed:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *([known] if known else [])])
    return environment


def _text(stderr: bytes | str | None) -> str:
    return stderr.decode(errors="replace") if isinstance(stderr, bytes) else stderr or ""


def _tail(stderr: str) -> str:
    lines = [line.strip() for line in stderr.strip().splitlines()]
    return " | ".join(lines[-_TAIL_LINES:]) or "nothing"
