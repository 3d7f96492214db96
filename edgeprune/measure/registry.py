"""One registry for every seam: a public name, a decorator, built-ins and plugins alike.

A built-in is one file in the seam's package that registers itself with the seam's decorator;
the file is named after what it registers. A plugin is an entry point of the group `edgeprune`
that names a module which does the same. Both load on the first lookup that needs them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib import metadata, util
from typing import Generic, TypeVar

from edgeprune.errors import EnvironmentFailed, UsageError

T = TypeVar("T")

ENTRY_POINT_GROUP = "edgeprune"


class Registry(Generic[T]):
    """Names of one kind of extension and what they stand for.

    runners: Registry[RunnerFactory] = Registry(kind="runner", package="edgeprune.measure.runners")
    """

    def __init__(self, *, kind: str, package: str) -> None:
        self._kind = kind
        self._package = package
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its target as `name` and returns it unchanged."""

        def keep(extension: T) -> T:
            if name in self._known and self._known[name] is not extension:
                raise EnvironmentFailed(
                    f"{self._kind} cannot be registered at '{name}': expected a free name, got "
                    "one that is taken. Uninstall one of the two plugins or rename it.",
                    where=name,
                )
            self._known[name] = extension
            return extension

        return keep

    def find(self, name: str) -> T:
        """Return what `name` stands for; UsageError, with the known names, if nothing does."""
        built_in = f"{self._package}.{name}"
        if name not in self._known and name.isidentifier() and util.find_spec(built_in):
            importlib.import_module(built_in)
        if name not in self._known:
            _load_plugins()
        if name not in self._known:
            raise UsageError(
                f"{self._kind} lookup failed at '{name}': expected one of "
                f"{', '.join(self.names())}, got '{name}'. Check the name or install its plugin.",
                where=name,
            )
        return self._known[name]

    def names(self) -> tuple[str, ...]:
        """Every name, built-in or from a plugin, sorted; loads all of them."""
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        _load_plugins()
        return tuple(sorted(self._known))


def _load_plugins() -> None:
    """Import every plugin module; importing one that is loaded already does nothing."""
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:  # a plugin is foreign code: anything may come out of it
            raise EnvironmentFailed(
                f"plugin cannot be loaded at entry point '{point.name}': expected module "
                f"{point.value} to import, got {type(error).__name__}: {error}. "
                "Mend or uninstall that package.",
                where=point.name,
            ) from error
