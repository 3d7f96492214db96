"""What every runner keeps to, ours and plugins' alike; and how the registry finds them."""

from __future__ import annotations

import importlib
import math
import sys
from importlib import metadata
from pathlib import Path

import pytest

import edgeprune.measure
from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.measure import (
    Job,
    MachineState,
    Registry,
    Runner,
    ScriptedRunner,
    find_runner,
    machine_state,
    runner_names,
)
from edgeprune.measure.result import file_sha256
from edgeprune.targets import Target


def make_runner(name: str, local: Target) -> Runner:
    """The runner of that name, or the scripted one."""
    if name == "scripted":
        return ScriptedRunner(lambda job, index: [1.0] * job.runs)
    return find_runner(
        local.model_copy(update={"device": local.device.model_copy(update={"transport": name})})
    )


@pytest.mark.parametrize("name", [*runner_names(), "scripted"])
def test_every_runner_does_the_whole_job(name: str, make_model, local: Target) -> None:
    """A runner returns all runs asked for, finite and not negative, of the model asked for."""
    model = make_model()
    job = Job(
        model=str(model),
        model_sha256=file_sha256(model),
        threads=1,
        batch=1,
        warmup=1,
        runs=3,
        least_runs=3,
        seconds=1.0,
        seed=0,
        timeout_seconds=120.0,
    )

    found = make_runner(name, local).run(job)

    assert found.model_sha256 == job.model_sha256
    assert len(found.times_ms) == 3
    assert all(math.isfinite(time_ms) and time_ms >= 0 for time_ms in found.times_ms)
    assert math.isfinite(found.load_ms)
    assert math.isfinite(found.first_ms)
    assert found.onnxruntime


def test_an_unknown_runner_lists_the_known_ones(local: Target) -> None:
    """A transport without a runner says which runners there are."""
    with pytest.raises(UsageError, match="runner lookup failed at 'adb': expected one of local"):
        make_runner("adb", local)


def test_a_plugin_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module named by an entry point of the group registers itself on the first lookup."""
    registry: Registry[int] = Registry(kind="number", package="edgeprune.measure.runners")
    (tmp_path / "a_plugin.py").write_text(
        "import test_registry\ntest_registry.registry.register('seven')(7)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry", type(sys)("test_registry"))
    sys.modules["test_registry"].registry = registry
    point = metadata.EntryPoint(name="seven", value="a_plugin", group="edgeprune")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])

    assert registry.find("seven") == 7


def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that does not import is an environment failure with its name and cause."""
    registry: Registry[int] = Registry(kind="number", package="edgeprune.measure.runners")
    point = metadata.EntryPoint(name="bad", value="no_such_plugin", group="edgeprune")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])

    with pytest.raises(EnvironmentFailed, match=r"at entry point 'bad'.*ModuleNotFoundError"):
        registry.find("seven")


def test_a_name_is_registered_once() -> None:
    """A second extension under a taken name is refused and the first one stays."""
    registry: Registry[int] = Registry(kind="number", package="edgeprune.measure.runners")
    registry.register("one")(1)

    with pytest.raises(EnvironmentFailed, match="at 'one': expected a free name"):
        registry.register("one")(2)
    assert registry.find("one") == 1


def test_public_names_are_exactly_what_is_importable() -> None:
    """Every name in __all__ loads, and __all__ names everything that is looked up lazily."""
    module = importlib.import_module("edgeprune.measure")

    assert sorted(module._HOME_OF) == module.__all__
    for name in module.__all__:
        assert getattr(edgeprune.measure, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_machine_state_reads_what_the_system_tells(tmp_path: Path) -> None:
    """Model and governor come from their files; a system without them is still described."""
    cpuinfo, governor = tmp_path / "cpuinfo", tmp_path / "governor"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Zen : 9\n", encoding="utf-8")
    governor.write_text("performance\n", encoding="utf-8")

    told = machine_state(cpuinfo=cpuinfo, governor=governor)
    silent = machine_state(cpuinfo=tmp_path / "none", governor=tmp_path / "none")

    assert (told.cpu_model, told.governor) == ("Zen : 9", "performance")
    assert isinstance(silent, MachineState)
    assert silent.governor is None
    assert silent.cpu_model
