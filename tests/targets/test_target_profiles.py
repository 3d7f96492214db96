"""Target profiles: what ships, what a file may say, what each mistake is told."""

from __future__ import annotations

import json
import os
import platform
import tomllib
from pathlib import Path

import jsonschema
import pydantic
import pytest

from edgeprune.errors import EnvironmentFailed, UsageError
from edgeprune.measure.here import why_not_here
from edgeprune.targets import (
    Target,
    available_cores,
    load_target,
    override,
    target_names,
    target_schema,
)

ROOT = Path(__file__).resolve().parents[2]


def _file(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", target_names())
def test_every_shipped_target_loads(name: str) -> None:
    """A shipped profile is valid, named as its file, and names its sources unless generic."""
    target = load_target(name)

    assert target.name == name
    assert target.status == "generic" or target.sources


def test_local_is_one_thread_one_sample_on_the_cpu() -> None:
    """`local` runs one sample on one thread of the CPU provider, with widths in sixteens."""
    local = load_target("local")

    assert (local.runtime.threads, local.runtime.batch) == (1, 1)
    assert local.runtime.ep == "CPUExecutionProvider"
    assert (local.pruning.channel_multiple, local.pruning.depthwise_multiple) == (16, 4)
    assert (local.status, local.device.transport) == ("generic", "local")


def test_a_shipped_profile_is_found_as_package_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed `edgeprune/_targets` is read before the checkout's `targets/`."""
    (tmp_path / "_targets").mkdir()
    (tmp_path / "_targets" / "board.toml").write_text('status = "generic"', encoding="utf-8")
    monkeypatch.setattr("edgeprune.targets.resources.files", lambda package: tmp_path)

    assert target_names() == ("board",)
    assert load_target("board").name == "board"


def test_a_path_is_read_where_it_lies(tmp_path: Path) -> None:
    """A `.toml` path is a target too, named after its file, with defaults for what is absent."""
    target = load_target(_file(tmp_path, 'status = "generic"\n[runtime]\nbatch = 4\n'))

    assert (target.name, target.runtime.batch, target.runtime.threads) == ("board", 4, 1)


def test_session_options_are_sorted_pairs(tmp_path: Path) -> None:
    """The same table of session options gives the same frozen pairs, in whichever order."""
    text = 'status = "generic"\n[runtime.session_options]\n"b" = "1"\n"a" = "0"\n'

    assert load_target(_file(tmp_path, text)).runtime.session_options == (("a", "0"), ("b", "1"))


def test_a_target_is_frozen_and_hashable() -> None:
    """A target cannot be changed, and equal targets hash alike."""
    local = load_target("local")

    with pytest.raises(pydantic.ValidationError, match="frozen"):
        local.name = "other"  # type: ignore[misc]
    assert hash(local) == hash(load_target("local"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('status = "generic"\n[runtime]\nthread = 1', "at runtime.thread: expected one of the"),
        ('status = "generic"\n[runtime]\nthread = 1', "Did you mean 'threads'?"),
        ('status = "generic"\n[prunning]\nx = 1', "Did you mean 'pruning'?"),
        ("[runtime]\nthreads = 1", "at status: expected a value, got none"),
        ('status = "guess"', "at status: expected 'measured', 'emulated', 'facts' or 'generic'"),
        ('status = "facts"', "expected `sources` (where its facts come from) beside status"),
        ('status = "generic"\n[runtime]\nthreads = 0', "expected a value greater than 0, got 0"),
        ('status = "generic"\n[budget]\np50_ms = "8"', "at budget.p50_ms: expected a number, got"),
        ('status = "generic"\n[budget]\np50_ms = true', "at budget.p50_ms: expected a number, got"),
        ('status = "generic"\n[runtime]\nthreads = 1.0', "threads: expected an integer, got 1.0"),
        ('status = "generic"\n[operators]\ndenied = "Conv"', "expected a list, got 'Conv'"),
        ('status = "generic"\n[budget]\np50_ms = 8', None),
        ("status = ", "expected TOML, got: Invalid value (at end of document)"),
    ],
)
def test_each_mistake_names_its_key_and_the_remedy(
    tmp_path: Path, text: str, expected: str | None
) -> None:
    """A bad file is a UsageError that names file and key; a whole number is one of ms, no more."""
    path = _file(tmp_path, text)

    if expected is None:
        assert load_target(path).budget.p50_ms == 8.0
        return
    with pytest.raises(UsageError) as caught:
        load_target(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_name_suggests_the_nearest() -> None:
    """A misspelt name is answered with the nearest shipped one."""
    with pytest.raises(UsageError, match=r"got 'locl'\. Did you mean 'local'\?"):
        load_target("locl")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """A path that is not there is named, with the system's reason."""
    with pytest.raises(UsageError, match=r"nowhere\.toml: .* got No such file or directory"):
        load_target(tmp_path / "nowhere.toml")


def test_more_threads_than_cores_is_refused_here(tmp_path: Path) -> None:
    """A local target with more threads than cores fails as environment, from file or override."""
    cores = available_cores()
    path = _file(tmp_path, f'status = "generic"\n[runtime]\nthreads = {cores + 1}\n')

    with pytest.raises(EnvironmentFailed, match=f"expected at most {cores} .*, got {cores + 1}"):
        load_target(path)
    with pytest.raises(EnvironmentFailed, match="at runtime.threads"):
        override(load_target("local"), threads=cores + 1)


def test_facts_about_a_board_with_more_cores_can_be_read_here(tmp_path: Path) -> None:
    """A profile of facts is never run here, so its threads are not held against this machine."""
    text = 'status = "facts"\nsources = ["its data sheet"]\n[runtime]\nthreads = 4096\n'

    assert load_target(_file(tmp_path, text)).runtime.threads == 4096


def test_override_changes_only_what_is_given() -> None:
    """None keeps the target's own threads and batch; the original is untouched."""
    local = load_target("local")
    changed = override(local, batch=8)

    assert (changed.runtime.threads, changed.runtime.batch) == (1, 8)
    assert override(local) == local
    assert local.runtime.batch == 1


def test_cores_are_those_of_this_process() -> None:
    """Cores are counted as the scheduler allows them, not as the machine has them."""
    assert available_cores() == len(os.sched_getaffinity(0))


def test_dumped_target_reads_back_as_itself() -> None:
    """A target survives the way through JSON, pairs included."""
    local = load_target("local")

    assert Target.model_validate_json(local.model_dump_json()) == local


def test_every_key_of_the_shipped_file_is_known() -> None:
    """The checkout's own local.toml holds no key that the model drops."""
    path = Path(__file__).resolve().parents[2] / "targets" / "local.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    dumped = load_target(path).model_dump()

    for section, keys in table.items():
        if isinstance(keys, dict):
            assert {key: dumped[section][key] for key in keys} == keys


def test_another_machine_may_have_more_cores_than_this_one(tmp_path: Path) -> None:
    """Threads are held against the cores of this machine only for a target that it could be."""
    text = 'status = "measured"\nsources = ["a board"]\n[cpu]\narch = "mips"\n[runtime]\n'
    (tmp_path / "board.toml").write_text(text + "threads = 200\n")

    assert load_target(tmp_path / "board.toml").runtime.threads == 200


def test_the_published_schema_is_the_models_and_takes_what_ships() -> None:
    """docs/target.schema.json, for editors, is up to date; every shipped profile is valid by it."""
    published = json.loads((ROOT / "docs" / "target.schema.json").read_text(encoding="utf-8"))

    assert published == target_schema()
    for name in target_names():
        profile = tomllib.loads((ROOT / "targets" / f"{name}.toml").read_text(encoding="utf-8"))
        jsonschema.validate(profile, published)
    with pytest.raises(jsonschema.ValidationError, match="ram"):
        jsonschema.validate({"status": "generic", "memory": {"ram": 1}}, published)


def test_a_range_of_runtimes_is_one(tmp_path: Path) -> None:
    """runtime.onnxruntime is a range of versions; anything else is refused with an example."""
    with pytest.raises(UsageError, match=r"a range of versions, such as '>=1\.20,<2'"):
        load_target(str(_file(tmp_path, 'status = "generic"\n[runtime]\nonnxruntime = "new"')))


@pytest.mark.parametrize(("wanted", "here"), [(">=1.20", True), ("<1.0", False)])
def test_another_runtime_is_another_target(tmp_path: Path, wanted: str, here: bool) -> None:
    """A time of an ONNX Runtime that the target does not run is none of the target's."""
    text = f'status = "generic"\n[runtime]\nonnxruntime = "{wanted}"'
    reason = why_not_here(load_target(str(_file(tmp_path, text))))

    assert (reason is None) is here
    assert here or "it runs ONNX Runtime <1.0, this machine has" in str(reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[runtime]\nformat = "ort"', "it loads ort files, and builds are onnx"),
        ('[runtime]\naffinity = "4-7"', "it runs on cores 4-7, which are not chosen here"),
        ('[os]\nname = "QNX"', "it runs QNX, this machine runs"),
        ('[device]\ntransport = "ssh"', "it is reached by ssh, which this version does not do"),
        (f'[os]\nname = "{platform.system().upper()}"', None),
        ('[runtime]\nformat = "onnx"', None),
    ],
)
def test_a_key_that_makes_a_target_another_machine_is_heeded(
    tmp_path: Path, text: str, reason: str | None
) -> None:
    """What would run otherwise than here gets no time from here, however many threads it has."""
    profile = f'status = "generic"\n{text}\n'
    found = why_not_here(load_target(_file(tmp_path, profile)))

    assert found is None if reason is None else reason in str(found)
    if reason is not None:
        threads = {"[runtime]": "threads = 4096"}.get(text.split("\n")[0])
        more = threads or "[runtime]\nthreads = 4096"
        assert load_target(_file(tmp_path, profile + more)).runtime.threads == 4096


def test_a_target_survives_json_with_lists(tmp_path: Path) -> None:
    """Lists of names, clusters and session options are read from TOML, and from JSON again."""
    text = (
        'status = "generic"\n[cpu]\nisa = ["avx2"]\n[[cpu.clusters]]\ncore = "A"\ncount = 1\n'
        '[operators]\nallowed = ["Conv"]\n[runtime.session_options]\na = "1"\n'
    )
    target = load_target(_file(tmp_path, text))

    assert (target.cpu.isa, target.operators.allowed) == (("avx2",), ("Conv",))
    assert Target.model_validate_json(target.model_dump_json()) == target
