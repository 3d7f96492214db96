"""The real worker process: complete results, refusals, deaths. No time is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.measure import Job, Settings, find_runner, measure_pairs
from edgeprune.measure.result import (
    Result,
    file_sha256,
    job_from_json,
    job_to_json,
    result_to_json,
    samples_from_json,
)
from edgeprune.measure.runners.local import LocalRunner
from edgeprune.measure.scripted import ScriptedRunner
from edgeprune.measure.session import open_session, seeded_inputs
from edgeprune.targets import Target


def job_for(model: Path, **change: object) -> Job:
    """A short job on `model`, with what a test changes."""
    job = Job(
        model=str(model),
        model_sha256=file_sha256(model),
        threads=1,
        batch=2,
        warmup=1,
        runs=5,
        least_runs=2,
        seconds=60.0,
        seed=0,
        timeout_seconds=120.0,
    )
    return replace(job, **change)


def fake_python(folder: Path, script: str) -> str:
    """An executable that stands in for the worker's interpreter."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_fresh_process_returns_a_complete_result(make_model, local: Target) -> None:
    """A job comes back with all its runs, the model's hash and the runtime's version."""
    job = job_for(make_model())

    found = find_runner(local).run(job)

    assert len(found.times_ms) == 5
    assert all(time_ms > 0 for time_ms in found.times_ms)
    assert found.model_sha256 == job.model_sha256
    assert found.onnxruntime == onnxruntime.__version__
    assert found.load_ms > 0
    assert found.first_ms > 0


def test_peak_memory_is_the_workers_own(make_model) -> None:
    """400 MiB held by this process are not charged to the worker that it starts."""
    ballast = np.ones(50 * 2**20)

    found = LocalRunner().run(job_for(make_model()))

    assert ballast[-1] == 1.0
    assert 10 < found.peak_rss_mib < 300


def test_two_real_models_are_measured_in_pairs(make_model, local: Target, brief: Settings) -> None:
    """The whole path, real processes included: every pair complete, the state recorded."""
    found = measure_pairs(make_model("a.onnx"), make_model("b.onnx"), local, brief)

    assert len(found.baseline) == len(found.candidate) == 2
    assert all(len(samples.times_ms) >= 2 for samples in (*found.baseline, *found.candidate))
    assert found.before.cores >= 1


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        (("batch", 3), TensorProto.STRING, "expected a numeric or boolean tensor, got tensor(str"),
        (("batch", "width"), TensorProto.FLOAT, "axis 1: expected a fixed size"),
        ((5, 3), TensorProto.FLOAT, "expected a dynamic batch or a batch of 2, got shape [5, 3]"),
    ],
)
def test_what_cannot_be_fed_is_refused_by_the_worker(
    make_model, shape: tuple[int | str, ...], dtype: int, expected: str
) -> None:
    """A refusal is a complete result: the user gets the worker's message, as a usage error."""
    with pytest.raises(UsageError) as caught:
        LocalRunner().run(job_for(make_model(shape=shape, dtype=dtype)))
    assert expected in str(caught.value)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    """A file that is not ONNX is named, with ONNX Runtime's version and words."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")

    with pytest.raises(UsageError, match=r"broken\.onnx: expected a file that ONNX Runtime 1\."):
        LocalRunner().run(job_for(broken))


def test_a_worker_that_dies_is_quoted(make_model, tmp_path: Path) -> None:
    """Exit code 0 without a result is a failure, told with the last words on stderr."""
    runner = LocalRunner(python=fake_python(tmp_path, "echo 'illegal instruction' >&2; exit 0"))

    with pytest.raises(EnvironmentFailed, match="got none; it said: illegal instruction"):
        runner.run(job_for(make_model()))


def test_a_worker_that_hangs_is_ended(make_model, tmp_path: Path) -> None:
    """A process that outlives its timeout is killed, and the message names the way out."""
    runner = LocalRunner(python=fake_python(tmp_path, "echo waiting >&2; exec sleep 60"))

    with pytest.raises(EnvironmentFailed, match=r"within 0\.5 s, got none; it said: waiting"):
        runner.run(job_for(make_model(), timeout_seconds=0.5))


def test_a_missing_interpreter_is_an_environment_failure(make_model) -> None:
    """An interpreter that is not there is named."""
    with pytest.raises(EnvironmentFailed, match="at /no/python: expected a Python interpreter"):
        LocalRunner(python="/no/python").run(job_for(make_model()))


def test_a_users_module_does_not_shadow_ours(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `json.py` in the working directory is not imported by the worker."""
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert len(LocalRunner().run(job_for(make_model())).times_ms) == 5


def test_an_interrupt_kills_the_worker(make_model, tmp_path: Path) -> None:
    """SIGINT to the measuring process ends its worker too; nothing is left running."""
    pid_file = tmp_path / "pid"
    python = fake_python(tmp_path, f"echo $$ > {pid_file}; exec sleep 60")
    program = (
        "from pathlib import Path\n"
        "from edgeprune.measure.result import job_from_json\n"
        "from edgeprune.measure.runners.local import LocalRunner\n"
        f"LocalRunner(python={python!r}).run(job_from_json(Path('job.json').read_text())[1])\n"
    )
    (tmp_path / "job.json").write_text(job_to_json("n", job_for(make_model())), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env=environment,
        # What runs behind a shell's & ignores the signal, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The worker runs; its parent is asleep only once it has come to waiting for it.
    _wait_until(lambda: pid_file.exists() and pid_file.read_text().strip() != "")
    _wait_until(lambda: "State:\tS" in Path(f"/proc/{process.pid}/status").read_text())
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert b"KeyboardInterrupt" in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def _wait_until(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("the worker never started")


def test_a_job_survives_the_way_to_the_worker(make_model) -> None:
    """A job read back from JSON is the job that was written, session options included."""
    job = job_for(make_model(), session_options=(("session.intra_op.allow_spinning", "0"),))

    assert job_from_json(job_to_json("abc", job)) == ("abc", job)


def test_incomplete_results_are_refused(make_model) -> None:
    """A cut-off file, another nonce, another model, no end marker or no runs: all refused."""
    job = job_for(make_model())
    samples = ScriptedRunner(lambda job, index: [1.0]).run(job)
    whole = result_to_json(Result(nonce="n", samples=samples, refusal=None))
    table = json.loads(whole)
    assert samples_from_json(whole, nonce="n", job=job) == samples

    broken = {
        "a whole result": whole[:-5],
        "nonce 'n'": json.dumps({**table, "nonce": "other"}),
        "end 'edgeprune": json.dumps({**table, "end": "edgeprune-result-0"}),
        "at least one timed run": result_to_json(
            Result(nonce="n", samples=replace(samples, times_ms=()), refusal=None)
        ),
        "a model with sha256": result_to_json(
            Result(nonce="n", samples=replace(samples, model_sha256="0"), refusal=None)
        ),
    }
    for expected, text in broken.items():
        with pytest.raises(EnvironmentFailed, match=f"expected {expected}"):
            samples_from_json(text, nonce="n", job=job)


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.INT64, "int64"),
        (TensorProto.INT32, "int32"),
    ],
)
def test_inputs_fit_the_model_and_repeat(make_model, dtype: int, numpy_dtype: str) -> None:
    """Inputs have the model's shape and dtype with the batch asked for, and follow their seed."""
    session = open_session(make_model(shape=("n", 4), dtype=dtype), threads=1)

    first = seeded_inputs(session, batch=3, seed=1)["x"]

    assert (first.shape, first.dtype) == ((3, 4), np.dtype(numpy_dtype))
    np.testing.assert_array_equal(first, seeded_inputs(session, batch=3, seed=1)["x"])
    if first.dtype.kind == "i":
        assert set(np.unique(seeded_inputs(session, batch=99, seed=1)["x"])) == {0, 1}
    else:
        assert not np.array_equal(first, seeded_inputs(session, batch=3, seed=2)["x"])


def test_an_axis_with_the_batchs_symbol_is_a_batch_too(make_model) -> None:
    """Shape (n, n) of a dynamic batch n becomes (2, 2)."""
    session = open_session(make_model(shape=("n", "n")), threads=1)

    assert seeded_inputs(session, batch=2, seed=0)["x"].shape == (2, 2)


def test_session_is_as_explicit_as_it_says(make_model) -> None:
    """Threads, order and spinning are set, and a target's own session entry comes last."""
    options = open_session(
        make_model(), threads=2, session_options=(("session.intra_op.allow_spinning", "0"),)
    ).get_session_options()

    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
