"""ONNX files that are broken or mean harm: one clear error, and nothing outside is read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.errors import UsageError
from edgeprune.gates.check import Request, check
from edgeprune.measure import trial
from edgeprune.recipe.onnx_file import external_files, read_model
from edgeprune.targets import load_target


def _check(path):
    return check(Request(model=path, target=load_target("local")))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "an empty file"),
        (b"\x08\x07", "without a graph"),
        (b"this is no protobuf at all \xff\xff", "expected an ONNX file"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, content, problem):
    """Empty, a bare header, other bytes: UsageError with the path."""
    (tmp_path / "bad.onnx").write_bytes(content)

    with pytest.raises(UsageError, match=rf"bad\.onnx.*{problem}"):
        _check(tmp_path / "bad.onnx")


def test_a_missing_file_is_refused(tmp_path):
    """A path that is not there."""
    with pytest.raises(UsageError, match="No such file"):
        _check(tmp_path / "none.onnx")


def test_a_truncated_file_is_refused(make_linear):
    """Cut at any of a dozen places, a file is never taken for a whole one."""
    whole = make_linear(np.eye(3))
    content = whole.read_bytes()
    for length in range(1, len(content), max(1, len(content) // 12)):
        whole.write_bytes(content[:length])
        with pytest.raises(UsageError):
            read_model(whole)


@pytest.mark.parametrize("kind", ["absolute", "parent", "link", "folder link"])
def test_external_data_outside_the_folder_is_never_read(tmp_path, make_linear, kind):
    """Weights that point at another folder's file, in four spellings: refused by name."""
    secret = tmp_path / "outside" / "secret.bin"
    secret.parent.mkdir()
    secret.write_bytes(bytes(36))
    folder = tmp_path / "inside"
    folder.mkdir()
    path = make_linear(np.eye(3), external="w.bin").rename(folder / "linear.onnx")
    location = {"absolute": str(secret), "parent": "../outside/secret.bin"}.get(kind, "w.bin")
    if kind == "link":
        (folder / "w.bin").symlink_to(secret)
    if kind == "folder link":
        (folder / "sub").symlink_to(secret.parent)
        location = "sub/secret.bin"
    model = onnx.load(path, load_external_data=False)
    next(
        e for e in model.graph.initializer[0].external_data if e.key == "location"
    ).value = location
    path.write_bytes(model.SerializeToString())

    with pytest.raises(UsageError, match="lies outside"):
        _check(path)


def test_external_data_that_is_missing_is_named(make_linear):
    """The model without its weights: the file that should be there is in the message."""
    path = make_linear(np.eye(3), external="w.bin")
    (path.parent / "w.bin").unlink()

    with pytest.raises(UsageError, match=r"w\.bin, got no such file"):
        _check(path)


def test_external_data_inside_the_folder_is_fine(make_linear):
    """The counterpart: weights beside the model are found, and the model is judged."""
    path = make_linear(np.eye(3), external="w.bin")

    assert [
        file.name for file in external_files(path, onnx.load(path, load_external_data=False))
    ] == ["w.bin"]
    assert _check(path).verdicts[0].outcome == "pass"


def test_an_operator_that_the_runtime_has_not_is_a_failed_verdict(tmp_path):
    """A node of an unknown domain: it is named, and nothing tries to run the file."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")], "g", ports[:1], ports[1:]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "a.onnx")

    found = _check(tmp_path / "a.onnx")

    assert [(v.gate, v.outcome) for v in found.verdicts] == [("operators", "fail")]
    assert "acme.Frobnicate (1)" in found.verdicts[0].why
    assert any("does not take it" in note for note in found.not_judged)


def test_a_crash_of_the_runtime_is_a_finding(make_linear, monkeypatch):
    """A file that kills the process which loads it ends in an error, not in our own end."""
    killer = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    run = trial.subprocess.run

    def killed(command, **options):
        return run([command[0], "-c", killer], **options)

    monkeypatch.setattr(trial.subprocess, "run", killed)

    with pytest.raises(UsageError, match=r"a crash of ONNX Runtime \(SIGSEGV\)"):
        _check(make_linear(np.eye(3)))
