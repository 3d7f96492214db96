"""The fresh process: load one model, time it, write one complete result, nothing else.

    python -m edgeprune.measure.worker JOB.json RESULT.json

It imports ONNX Runtime and NumPy only. Its exit code means nothing (see `result`).
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort

from edgeprune.errors import UsageError
from edgeprune.measure.result import Result, file_sha256, job_from_json, result_to_json
from edgeprune.measure.samples import Job, Samples
from edgeprune.measure.session import one_line, open_session, seeded_inputs


def main(arguments: list[str]) -> None:
    """Do the job in the first file and write its result to the second."""
    job_file, result_file = arguments
    nonce, job = job_from_json(Path(job_file).read_text(encoding="utf-8"))
    try:
        result = Result(nonce=nonce, samples=measure(job), refusal=None)
    except UsageError as error:
        result = Result(nonce=nonce, samples=None, refusal=str(error))
    Path(result_file).write_text(result_to_json(result), encoding="utf-8")


def measure(job: Job) -> Samples:
    """Load the job's model, warm it up and time it in this process.

    Inputs and outputs are bound once: calling `session.run` with a dict costs 5 to 60 us more
    per run than the inference itself, which would pull every ratio of small models towards 1.
    """
    path = Path(job.model)
    started_ns = time.perf_counter_ns()
    session = open_session(path, threads=job.threads, session_options=job.session_options)
    load_ms = _ms_since(started_ns)

    binding = session.io_binding()
    for name, value in seeded_inputs(session, batch=job.batch, seed=job.seed).items():
        binding.bind_cpu_input(name, value)
    for node in session.get_outputs():
        binding.bind_output(node.name)

    def infer() -> None:
        session.run_with_iobinding(binding)

    started_ns = time.perf_counter_ns()
    try:
        infer()
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
        raise UsageError(
            f"running the model at {path}: expected it to run on seeded inputs of batch "
            f"{job.batch}, got: {one_line(error)}. Check what its inputs must hold.",
            where=str(path),
        ) from error
    first_ms = _ms_since(started_ns)

    for _ in range(job.warmup):
        infer()
    return Samples(
        model_sha256=file_sha256(path),
        times_ms=_timed(infer, job),
        load_ms=load_ms,
        first_ms=first_ms,
        peak_rss_mib=_peak_rss_mib(),
        onnxruntime=ort.__version__,
    )


def _timed(infer: Callable[[], None], job: Job) -> tuple[float, ...]:
    """Time single inferences: all of `runs`, or fewer once `seconds` are over."""
    times_ms: list[float] = []
    gc.disable()  # a collection in the middle of a run would be charged to the model
    began_ns = time.perf_counter_ns()
    while len(times_ms) < job.runs:
        if len(times_ms) >= job.least_runs and _ms_since(began_ns) > job.seconds * 1e3:
            break
        started_ns = time.perf_counter_ns()
        infer()
        times_ms.append(_ms_since(started_ns))
    gc.enable()
    return tuple(times_ms)


def _ms_since(started_ns: int) -> float:
    return (time.perf_counter_ns() - started_ns) / 1e6


def _peak_rss_mib() -> float:
    """Largest resident size of this process in MiB.

    Linux carries `ru_maxrss` over from the process that forked this one, which may hold torch
    and a data set; VmHWM belongs to this program alone.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main(sys.argv[1:])
