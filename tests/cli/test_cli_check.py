"""`check`, `bench` and `targets`: their words, their files and their exit codes. No torch."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.targets import load_target

RAPID = """
status = "generic"
[measure]
preset = "rapid"
"""


def invoke(*args):
    """The program's result for some words."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in args])


@pytest.fixture
def shipped(tmp_path):
    """A matrix product, a baseline that computes the same, samples, a target of little effort."""
    for name in ("model", "baseline"):
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in "xy"]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
        graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
        opsets = [helper.make_opsetid("", 20)]
        # Files are told apart by their hash.
        made = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name=name)
        onnx.save(made, tmp_path / f"{name}.onnx")
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    target = x.argmax(axis=1)
    target[0] = (target[0] + 1) % 3
    np.savez(tmp_path / "data.npz", x=x, target=target)
    (tmp_path / "rapid.toml").write_text(RAPID)
    return tmp_path


@pytest.mark.parametrize(
    ("limits", "code", "outcomes"),
    [
        (["--accuracy-min", "0.95"], 0, {"operators": "pass", "accuracy_min": "pass"}),
        (["--accuracy-min", "0.96"], 1, {"operators": "pass", "accuracy_min": "fail"}),
        (
            ["--target", "raspberry-pi-4", "--latency-ms", "5"],
            3,
            {"operators": "pass", "latency": "inconclusive"},
        ),
        (
            ["--target", "raspberry-pi-4", "--latency-ms", "5", "--accuracy-min", "0.96"],
            1,
            {"operators": "pass", "accuracy_min": "fail", "latency": "inconclusive"},
        ),
    ],
)
def test_the_worst_verdict_is_the_exit_code(shipped, limits, code, outcomes):
    """19 of 20 are right: 0.95 passes, 0.96 fails; no time on another device is inconclusive,
    and a failure wins over that. JSON, JUnit and the last line say the same."""
    args = ["check", shipped / "model.onnx", "--data", shipped / "data.npz", *limits]
    junit = shipped / "junit.xml"
    done = invoke(*args, "--json", "--junit", junit)
    said = json.loads(done.stdout)

    assert done.exit_code == said["exit_code"] == code
    assert {v["gate"]: v["outcome"] for v in said["verdicts"]} == outcomes
    suite = ET.parse(junit).getroot()
    assert {case.get("name") for case in suite.iter("testcase")} == set(outcomes)
    assert len(list(suite.iter("failure"))) == list(outcomes.values()).count("fail")
    last = invoke(*args, "-q").stdout
    assert last.startswith({0: "pass", 1: "fail", 3: "inconclusive"}[code] + ": ")
    assert len(last.splitlines()) == 1


def test_what_was_not_asked_for_is_named(shipped):
    """Without limits the table has the operators, and a line for everything that is not judged."""
    done = invoke("check", shipped / "model.onnx")

    assert done.exit_code == 0
    for what in ("contract", "size", "parity", "accuracy", "latency"):
        assert f"not judged: {what}" in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (["model.onnx", "--speedup", "1"], 2, ["--speedup", "--baseline"]),
        (["nothing.onnx"], 2, ["nothing.onnx", "No such file"]),
        (["model.onnx", "--data", "model.onnx", "--accuracy-min", "1"], 2, [".npz"]),
        (["model.onnx", "--target", "raspbery-pi-4"], 2, ["Did you mean 'raspberry-pi-4'?"]),
        (["model.onnx", "--junit", "rapid.toml/junit.xml"], 5, ["writing at"]),
        (["model.onnx", "--junit", "."], 5, ["writing at", "got a folder"]),
        (["model.onnx", "--latency-ms", "inf"], 2, ["p50_ms: expected a finite number"]),
        (["model.onnx", "--size-mib", "inf"], 2, ["size_mib: expected a finite number"]),
        (["model.onnx", "--import", "nothing.json"], 2, ["--import", "expected a latency limit"]),
        (["model.onnx", "--accuracy-min", "95"], 2, ["--accuracy-min", "less than or equal to 1"]),
    ],
)
def test_a_mistake_is_one_error(shipped, monkeypatch, args, code, parts):
    """Exit code 2 for the call and its files, 5 for the disk; the text names what and why."""
    monkeypatch.chdir(shipped)
    done = invoke("check", *args)

    assert done.exit_code == code
    assert [part for part in parts if part not in done.stderr] == []
    assert "Traceback" not in done.stderr


def test_times_that_bench_saved_are_judged_by_check(shipped, monkeypatch):
    """bench times both files in as many processes as asked and says how they compare; check takes
    the saved samples as the device's, and refuses them for a file that was not measured."""
    monkeypatch.chdir(shipped)
    common = ["--target", "rapid.toml", "--json"]
    timed = invoke(
        "bench", "baseline.onnx", "model.onnx", "--rounds", "3", "--save", "s.json", *common
    )
    rows = json.loads(timed.stdout)["models"]

    assert timed.exit_code == 0
    assert [row["processes"] for row in rows] == [3, 3]
    assert "speedup" not in rows[0]
    low, high = rows[1]["speedup_interval"]
    assert low <= rows[1]["speedup"] <= high
    imported = ["--import", "s.json", "--latency-ms", "1000", *common]
    judged = invoke("check", "model.onnx", *imported)
    (latency,) = (v for v in json.loads(judged.stdout)["verdicts"] if v["gate"] == "latency")
    assert (judged.exit_code, latency["outcome"]) == (0, "pass")
    assert latency["observed"] == pytest.approx(rows[1]["p50_ms"])
    model = onnx.load("model.onnx")
    model.producer_name = "somebody else"
    onnx.save(model, "model.onnx")
    assert invoke("check", "model.onnx", *imported).exit_code == 2


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"threads": 2}, "expected 1 thread(s), as the target has, got 2"),
        ({"batch": 4}, "expected 1 sample(s) an inference, as the target has, got 4"),
        ({"isa": []}, "expected a machine with sse9, as the target has, got one without"),
        ({"isa": ["sse9", "mmx9"]}, "expected a machine without mmx9"),
        ({"arch": "riscv64"}, "got those of riscv64"),
        ({"onnxruntime": "0.1"}, "times of ONNX Runtime >=1, as the target has, got those of 0.1"),
    ],
)
def test_times_of_another_machine_or_way_are_refused(shipped, monkeypatch, changes, part):
    """Threads, batch, instruction sets and architecture of saved samples must be the target's."""
    monkeypatch.chdir(shipped)
    invoke("bench", "model.onnx", "--rounds", "2", "--save", "s.json", "--target", "rapid.toml")
    saved = json.loads((shipped / "s.json").read_text())
    changes = dict(changes)
    saved["before"]["arch"] = changes.pop("arch", "x86_64")
    version = saved["models"][0]["samples"][0]["onnxruntime"]
    saved["models"][0]["samples"][0]["onnxruntime"] = changes.pop("onnxruntime", version)
    (shipped / "s.json").write_text(json.dumps(saved | {"isa": ["sse9"]} | changes))
    (shipped / "board.toml").write_text(
        'status = "facts"\nsources = ["a data sheet"]\n'
        '[cpu]\narch = "x86_64"\nisa = ["sse9"]\nisa_absent = ["mmx9"]\n'
        '[runtime]\nonnxruntime = ">=1"\n'
    )
    common = ["model.onnx", "--target", "board.toml", "--import", "s.json", "--latency-ms", "1e6"]
    refused = invoke("check", *common)

    assert refused.exit_code == 2
    assert part in refused.stderr
    fitting = saved | {"isa": ["sse9"]}
    fitting["before"]["arch"] = "x86_64"
    fitting["models"][0]["samples"][0]["onnxruntime"] = version
    (shipped / "s.json").write_text(json.dumps(fitting))
    assert invoke("check", *common).exit_code == 0


def test_a_place_that_cannot_be_written_is_told_before_the_measurement(shipped, monkeypatch):
    """bench --save into a folder that is not there: exit code 5, and nothing was timed."""
    monkeypatch.chdir(shipped)
    monkeypatch.setattr("edgeprune.measure.lineup.measure_lineup", lambda *_, **__: 1 / 0)
    done = invoke("bench", "model.onnx", "--save", "nowhere/s.json", "--target", "rapid.toml")

    assert done.exit_code == 5
    assert "no folder" in done.stderr


def test_a_probed_profile_is_a_target_that_can_be_measured_here(shipped, monkeypatch):
    """What `targets probe` writes reads back as a profile of this machine, and a file named so
    is listed by `show` with its sources."""
    monkeypatch.chdir(shipped)

    assert invoke("targets", "probe", "--out", "mine.toml").exit_code == 0
    shown = json.loads(invoke("targets", "show", "mine.toml", "--json").stdout)
    assert (shown["name"], shown["measurable_here"]) == ("mine", True)
    assert load_target("mine.toml").cpu.arch == shown["cpu"]["arch"]
    assert shown["sources"]


def test_every_shipped_profile_is_listed_with_what_can_be_measured_here():
    """The list names all profiles; one that holds facts only says so and is never measurable."""
    listed = json.loads(invoke("targets", "list", "--json").stdout)["targets"]
    by_name = {target["name"]: target for target in listed}

    assert by_name["local"]["measurable_here"] is True
    for name in ("raspberry-pi-4", "raspberry-pi-5"):
        assert by_name[name]["measurable_here"] is False
        assert "facts" in by_name[name]["why_not"]
    table = invoke("targets", "list").stdout
    assert all(name in table for name in by_name)


@pytest.mark.parametrize(
    ("status", "core", "code"),
    [("measured", "Cortex-A72", 2), ("facts", "Cortex-A72", 0), ("measured", "here", 0)],
)
def test_times_of_another_processor_are_refused_or_told(shipped, monkeypatch, status, core, code):
    """A measured profile is of its own processor; one of facts names cores as a data sheet does,
    so whose times they are is told."""
    monkeypatch.chdir(shipped)
    invoke("bench", "model.onnx", "--rounds", "2", "--save", "s.json", "--target", "rapid.toml")
    here = json.loads((shipped / "s.json").read_text())["before"]["cpu_model"]
    core = here if core == "here" else core
    (shipped / "board.toml").write_text(
        f'status = "{status}"\nsources = ["a data sheet"]\n'
        f"[[cpu.clusters]]\ncore = {json.dumps(core)}\ncount = 1\n"
    )
    done = invoke(
        *("check", "model.onnx", "--target", "board.toml", "--import", "s.json", "--json"),
        *("--latency-ms", "1e6"),
    )

    assert done.exit_code == code
    said = json.loads(done.stdout)
    if code:
        assert f"times of {core}, as the target has, got those of {here}" in done.stderr
        return
    told = f"times of {here}; the target has {core}: taken on trust"
    assert any(told in note for note in said["not_judged"]) is (core != here)


@pytest.mark.parametrize(
    "text",
    [
        '[device]\ntransport = "ssh"',
        '[runtime]\nformat = "ort"\nbatch = 2',
        '[runtime]\naffinity = "0"',
        '[os]\nname = "QNX"',
    ],
)
def test_a_target_that_is_reached_or_run_otherwise_is_inconclusive(shipped, text):
    """Exit code 3 with the way to measure, not a mistake of the call and not a time from here."""
    (shipped / "board.toml").write_text(f'status = "generic"\n{text}\n')
    done = invoke(
        *("check", shipped / "model.onnx", "--target", shipped / "board.toml"),
        *("--latency-ms", "5", "--json"),
    )

    assert done.exit_code == 3
    (latency,) = (v for v in json.loads(done.stdout)["verdicts"] if v["gate"] == "latency")
    batch = " --batch 2" if "batch" in text else ""
    assert f"bench model.onnx --threads 1{batch} --save samples.json" in latency["why"]
