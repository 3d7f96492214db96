"""Names of the user's functions, and calling them so that their errors stay theirs.

`file.py:function`, `package.module:function`; for a model also `torchvision:NAME`, `timm:NAME` or
a `.pt2` or `.onnx` file.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from edgeprune.errors import EdgepruneError, UsageError, UserCodeError

ARCHIVE_SUFFIX = ".pt2"
ONNX_SUFFIX = ".onnx"

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ATTRIBUTE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryName:
    """What stands before and after the last colon: a `.py` file or a dotted module, a function.

    str(FactoryName(place="model.py", function="build")) == "model.py:build"
    """

    place: str
    function: str

    def __str__(self) -> str:
        return f"{self.place}:{self.function}"

    @property
    def is_file(self) -> bool:
        """Whether the place is a Python file, not an importable module."""
        return self.place.endswith(".py")

    def file(self, base_dir: Path) -> Path | None:
        """The Python file, relative to `base_dir`; None for an importable module."""
        return base_dir / self.place if self.is_file else None


def parse_factory(text: str) -> FactoryName:
    """Split `place:function`; UsageError if it is neither a file nor a dotted module."""
    place, colon, function = text.rpartition(":")
    is_place = place.endswith(".py") or _MODULE.fullmatch(place) is not None
    if not colon or not is_place or not _ATTRIBUTE.fullmatch(function):
        raise UsageError(
            f"reading the factory at {text!r}: expected path/to/file.py:function or "
            f"package.module:function (a model also torchvision:NAME, timm:NAME, a .pt2 or an "
            f".onnx file), got {text!r}. Name the function after a colon.",
            where=text,
        )
    return FactoryName(place=place, function=function)


def archive_file(text: str, base_dir: Path) -> Path | None:
    """The `.pt2` file that a model is named by, relative to `base_dir`; None for any other name."""
    return base_dir / text if text.endswith(ARCHIVE_SUFFIX) else None


def onnx_file(text: str, base_dir: Path) -> Path | None:
    """The `.onnx` file that a model is named by, relative to `base_dir`; None for another name."""
    return base_dir / text if text.endswith(ONNX_SUFFIX) else None


def load_factory(name: FactoryName, base_dir: Path) -> Callable[[], object]:
    """The user's function, its module imported.

    The folder of a file goes first on `sys.path` and stays there, as `python file.py` does: the
    functions of that file may import their neighbours later.
    Raises UserCodeError when the module raises, UsageError when it or the function is not there.
    """
    module = _module_of(name, base_dir)
    value: object = module
    for part in name.function.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Define it, or name another."
            raise UsageError(
                f"loading the factory at {name}: expected a function {part!r}, got none of that "
                f"name. {hint}",
                where=str(name),
            )
        value = getattr(value, part)
    if not callable(value):
        raise UsageError(
            f"loading the factory at {name}: expected a function, got {type(value).__name__}. "
            f"Name a function that takes no argument.",
            where=str(name),
        )
    return value


def call_user(function: Callable[[], object], what: str, where: str) -> object:
    """Call the user's function; what it raises becomes a UserCodeError with the cause chained."""
    try:
        return function()
    except EdgepruneError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        raise user_error(error, what, where) from error


def user_error(error: BaseException, what: str, where: str) -> UserCodeError:
    """An error of the user's code, with the line it was raised from; chain it with `from`."""
    place = last_line(error) or where
    return UserCodeError(
        f"{what} at {place}: expected {where} to run through, got {type(error).__name__}: {error}. "
        f"Mend that line, or run {where} on its own.",
        where=place,
    )


def last_line(error: BaseException) -> str | None:
    """`file.py:12` of the innermost traceback entry that lies outside this package."""
    package = Path(__file__).resolve().parent.parent
    entries = traceback.extract_tb(error.__traceback__)
    for entry in reversed(entries):
        path = Path(entry.filename)
        if path.is_file() and package not in path.resolve().parents and not _installed(path):
            return f"{path.name}:{entry.lineno}"
    return None


def _installed(path: Path) -> bool:
    """Whether a file belongs to an installed package or the standard library."""
    parts = path.resolve().parts
    return "site-packages" in parts or Path(traceback.__file__).resolve().parent in path.parents


def _module_of(name: FactoryName, base_dir: Path) -> ModuleType:
    file = name.file(base_dir)
    if file is not None:
        return _module_of_file(file, name)
    try:
        return importlib.import_module(name.place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name.place}.".startswith(f"{error.name}."):
            raise user_error(error, "importing the factory's module", name.place) from error
        raise UsageError(
            f"importing the factory at {name}: expected a module {error.name!r}, got none. "
            f"Install it, or name a file as path/to/file.py:function.",
            where=str(name),
        ) from error
    except (Exception, SystemExit) as error:
        raise user_error(error, "importing the factory's module", name.place) from error


def _module_of_file(file: Path, name: FactoryName) -> ModuleType:
    path = file.resolve()
    if not path.is_file():
        raise UsageError(
            f"importing the factory at {name}: expected a Python file {file}, got none. "
            f"Give its path relative to the recipe or the current directory.",
            where=str(name),
        )
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # The name holds the path, so that two files called model.py never meet in sys.modules.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    title = f"edgeprune_user_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(title, path)
    if spec is None or spec.loader is None:
        raise UsageError(
            f"importing the factory at {name}: expected a Python source file, got {file}. "
            f"Name a .py file.",
            where=str(name),
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module  # dataclasses and pickles look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[title]
        if isinstance(error, EdgepruneError):
            raise
        raise user_error(error, "importing the factory's file", str(file)) from error
    return module
