"""The wheel, installed in clean environments: without torch, and with everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TIMEOUT_SECONDS = 600


def _run(*command, cwd, check=True, **environment):
    """A command outside the checkout, with nothing of this process's Python in its way."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the checkout as pip builds it for anybody."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    _run(*pip, "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """The programs of a clean environment, installed by the README's own line."""
    folder = tmp_path_factory.mktemp("light")
    _run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    (line,) = re.findall(r"^\$ (pip install .*)$", README, flags=re.MULTILINE)
    python = [folder / "venv/bin/python", "-m"]
    _run(*python, *line.split(), "--quiet", "--disable-pip-version-check", cwd=ROOT)
    return folder / "venv/bin"


@pytest.fixture
def model(tmp_path):
    """x + x, with samples whose class is the largest of three."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in "xy"]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx"
    )
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, target=x.argmax(axis=1))
    return tmp_path


def test_the_wheel_holds_all_that_the_program_reads(wheel):
    """Every target, schema, template and the typing marker; no test and no sample."""
    names = set(zipfile.ZipFile(wheel).namelist())

    for path in (ROOT / "edgeprune").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names
    for path in (ROOT / "targets").glob("*.toml"):
        assert f"edgeprune/_targets/{path.name}" in names
    assert not [name for name in names if name.startswith(("tests/", "samples/", "bench/"))]


def test_without_torch_a_build_is_checked(light, model):
    """check, bench, verify's error and targets work where torch cannot be imported."""
    program = light / "edgeprune"
    missing = _run(light / "python", "-c", "import torch", cwd=model, check=False)
    assert "ModuleNotFoundError" in missing.stderr

    listed = _run(program, "targets", "list", "--json", cwd=model)
    assert len(json.loads(listed.stdout)["targets"]) == len(list(ROOT.glob("targets/*.toml")))
    _run(program, "targets", "probe", "--out", "me.toml", cwd=model)
    _run(program, "bench", "model.onnx", "--rounds", "2", "--save", "s.json", cwd=model)
    limits = ["--accuracy-min", "1.0", "--data", "data.npz", "--latency-ms", "1000"]
    imported = ["--target", "me.toml", "--import", "s.json"]
    checked = _run(program, "check", "model.onnx", *limits, *imported, "--json", cwd=model)
    outcomes = {v["gate"]: v["outcome"] for v in json.loads(checked.stdout)["verdicts"]}
    assert outcomes == dict.fromkeys(("operators", "accuracy_min", "latency"), "pass")
    assert _run(program, "verify", ".", cwd=model, check=False).returncode == 2


def test_without_torch_the_other_commands_say_what_to_install(light, model):
    """`inspect` ends with exit code 5 and the line that installs what it needs."""
    done = _run(light / "edgeprune", "inspect", "torchvision:resnet18", cwd=model, check=False)

    assert done.returncode == 5
    assert 'pip install "edgeprune[torch]"' in done.stderr


def test_the_wheel_with_everything_prunes_outside_the_checkout(wheel, tmp_path):
    """The wheel beside what it requires with its torch extra, and nothing else: the code that runs
    is the wheel's, a model is pruned and verified."""
    _run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # As pip would install it, without the gigabytes: links to those very distributions.
    for name in _required("edgeprune", "torch"):
        for top in _tops(name):
            if not (site / top.name).exists():
                (site / top.name).symlink_to(top)
    where = _run(python, "-c", "import edgeprune; print(edgeprune.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(site)

    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def build():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(),"
        " torch.nn.Linear(16, 3))\n"
        "    return net, (torch.randn(2, 4),), {}\n"
    )
    command = [python, "-m", "edgeprune", "prune", "net.py:build", "--out", "out", "--json"]
    done = _run(*command, cwd=tmp_path, OMP_NUM_THREADS="1")

    assert json.loads(done.stdout)["report"]["rounds"][0]["keep_fraction"] == 0.5
    verified = _run(python, "-m", "edgeprune", "verify", "out", "--json", cwd=tmp_path)
    assert json.loads(verified.stdout)["outcome"] == "pass"


def _required(name, extra=""):
    """Names of all distributions that one requires here, with an extra, those of those included."""
    found, queue = set(), [(name, extra)]
    while queue:
        current, wanted = queue.pop()
        for text in metadata.requires(current) or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is not None and not marker.evaluate({"extra": wanted}):
                continue
            for option in ("", *requirement.extras):
                if (requirement.name, option) not in found:
                    found.add((requirement.name, option))
                    queue.append((requirement.name, option))
    return sorted({name for name, _ in found})


def _tops(name):
    """The files and folders of a distribution that lie in site-packages itself."""
    distribution = metadata.distribution(name)
    names = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    return [Path(distribution.locate_file(top)) for top in sorted(names)]
