"""The repository: nothing of a machine in it, pins complete, packaging current."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", "build", "dist", "__pycache__"}
SKIPPED |= {".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
TEXT = {".py", ".toml", ".md", ".txt", ".j2", ".json", ".yml", ".yaml", ".cfg", ""}

# Absolute paths of one machine, and hosts that packages are fetched from.
FORBIDDEN = {
    "a machine's path": r"(?:^|[\s\"'=(])/(?:work|root|home|farm|opt|mnt|tmp|Users)/",
    "a package index": r"//[a-z0-9.-]*(?:pypi|debian|npm)[a-z0-9.-]*\.[a-z]+",
}


def text_files() -> list[Path]:
    """Every text file of the project, without what builds and tools leave behind."""
    return sorted(
        path
        for path in REPOSITORY.rglob("*")
        if path.is_file()
        and path.suffix in TEXT
        and not SKIPPED & set(path.relative_to(REPOSITORY).parts)
        and path.stat().st_size < 2**20
    )


def settings() -> dict:
    """pyproject.toml as a table."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> list[Requirement]:
    """Every requirement of the package and its extras."""
    project = settings()["project"]
    extras = project["optional-dependencies"].values()
    texts = itertools.chain(project["dependencies"], *extras)
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_of_a_machine_is_in_the_project(what):
    """No file names a path of one machine, or a host that packages come from."""
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = [
        f"{path.relative_to(REPOSITORY)}: {match.group()}"
        for path in text_files()
        if path != Path(__file__).resolve()
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]

    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a machine's path", 'open("/home/somebody/x")'),
        ("a machine's path", "/Users/somebody"),
        ("a package index", "https://mirror.pypi-like.example/x"),
    ],
)
def test_the_search_for_a_machine_can_fail(what, text):
    """The patterns find what they are meant to find."""
    assert re.search(FORBIDDEN[what], text, re.MULTILINE)


def test_constraints_pin_every_requirement_within_its_range():
    """Each requirement is pinned once, to one version that its range admits."""
    pins = {}
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert re.fullmatch(r"[0-9][0-9a-z.]*", version), line
            assert canonicalize_name(name) not in pins, line
            pins[canonicalize_name(name)] = version

    for requirement in requirements():
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
        assert any(s.operator == "<" for s in requirement.specifier), requirement.name


def test_torch_is_not_a_base_requirement():
    """What the torch-free commands install does not bring torch."""
    base = {Requirement(text).name for text in settings()["project"]["dependencies"]}

    assert base.isdisjoint({"torch", "torchvision", "onnxscript", "safetensors"})


def test_shipped_data_is_where_the_package_looks_for_it():
    """The wheel takes the top-level targets as edgeprune/_targets, and report data as it lies."""
    wheel = settings()["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert wheel["force-include"] == {"targets": "edgeprune/_targets"}
    assert list((REPOSITORY / "targets").glob("*.toml"))
    for name in ("report.schema.json", "report.html.j2"):
        assert (REPOSITORY / "edgeprune" / "release" / name).is_file()


def test_warnings_are_errors():
    """pytest turns warnings into errors; what is let through names its origin."""
    pytest_settings = settings()["tool"]["pytest"]["ini_options"]
    first, *exceptions = pytest_settings["filterwarnings"]

    assert first == "error"
    assert pytest_settings["xfail_strict"] is True
    assert "--strict-markers" in pytest_settings["addopts"]
    for exception in exceptions:
        action, message, *_ = exception.split(":")
        assert action == "ignore"
        assert len(message) > 10, "an exception without a message lets everything through"
