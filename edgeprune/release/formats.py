"""Formats of the report: one file, one decorator each.

@report_format("junit", file="junit.xml") on a function from a Report to text makes the format part
of every bundle. A module of this package is found by being here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from edgeprune.measure.registry import Registry
from edgeprune.release.report import Report

Render: TypeAlias = Callable[[Report], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format's public name, the file it is written to, and what renders it."""

    name: str
    file: str
    render: Render


_FORMATS: Registry[Format] = Registry(kind="report format", package="edgeprune.release")


def report_format(name: str, *, file: str) -> Callable[[Render], Render]:
    """Register a function from a Report to the text of `file`, under a name of its own."""

    def register(render: Render) -> Render:
        _FORMATS.register(name)(Format(name=name, file=file, render=render))
        return render

    return register


def report_formats() -> tuple[Format, ...]:
    """Every format there is, built in or from a plugin, by name."""
    return tuple(_FORMATS.find(name) for name in _FORMATS.names())
