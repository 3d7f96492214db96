"""The shape of the package: imports one way, light rooms, small modules, honest names."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgeprune

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "edgeprune"
MODULES = sorted(PACKAGE.rglob("*.py"))
TEST_FILES = sorted((REPOSITORY / "tests").rglob("*.py"))

# A room may import from rooms before it, never from one after it.
ROOMS = (
    "errors",
    "recipe",
    "targets",
    "measure",
    "graph",
    "scoring",
    "planning",
    "surgery",
    "recover",
    "exporting",
    "gates",
    "release",
    "pipeline",
    "cli",
)
TORCH_FREE = ("errors", "targets", "measure", "gates", "release")
LONGEST_MODULE_LINES = 350
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "base", "types", "misc"}
BANNED_NAMES |= {"manager", "managers", "stuff", "shared"}

# Modules that may name typing.Any, each with the reason why nothing more exact can be said.
ANY_ALLOWED: dict[str, str] = {}


def name_of(path: Path) -> str:
    """Dotted name of a module of the package."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of a dotted name; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def is_type_checking(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(tree: ast.AST, *, also_for_types: bool = True) -> set[str]:
    """Dotted names of everything imported anywhere in a tree, inside functions too."""
    found: set[str] = set()
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if also_for_types or not is_type_checking(node):
            queue += list(ast.iter_child_nodes(node))
    return found


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_one_way(path):
    """No module imports from a room below its own, inside functions and for types included."""
    here = room_of(name_of(path))
    if here in (None, "__main__"):
        return  # the package's own names come from every room, lazily; a test of its own below
    below = ROOMS[ROOMS.index(here) + 1 :]
    rooms = {room_of(name) for name in imported(parsed(path)) if name.startswith("edgeprune.")}

    assert rooms & set(below) == set()


def test_every_room_is_in_the_order():
    """Each folder or module at the top of the package has a place in the order of rooms."""
    found = {m.name for m in pkgutil.iter_modules([str(PACKAGE)])} - {"__main__"}

    assert found <= set(ROOMS)


def test_the_one_way_test_can_fail():
    """An import of a later room is found wherever it hides."""
    hidden = "def f():\n    if x:\n        from edgeprune.cli.app import main\n"
    typed = "if TYPE_CHECKING:\n    import edgeprune.cli.app\n"

    assert imported(ast.parse(hidden)) == {"edgeprune.cli.app.main"}
    assert imported(ast.parse(typed)) == {"edgeprune.cli.app"}
    assert imported(ast.parse(typed), also_for_types=False) == set()


def test_torch_free_rooms_import_without_torch():
    """Every module of measure, gates, release and targets imports with torch blocked."""
    names = [name_of(path) for path in MODULES if room_of(name_of(path)) in TORCH_FREE]
    code = (
        "import importlib, sys\n"
        "for blocked in ('torch', 'torchvision', 'onnxscript', 'safetensors'):\n"
        "    sys.modules[blocked] = None\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert len(names) > 20
    assert done.returncode == 0, done.stderr


def test_no_package_init_imports_anything_heavy():
    """Importing the package and each room's __init__ loads neither torch, ORT, ONNX nor NumPy."""
    names = [name_of(path) for path in MODULES if path.name == "__init__.py"]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'numpy', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_small_and_says_what_it_is(path):
    """At most 350 lines, a docstring, postponed annotations, and a name that tells its purpose."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    stem = path.parent.name if path.name == "__init__.py" else path.stem

    assert len(text.splitlines()) <= LONGEST_MODULE_LINES
    assert ast.get_docstring(tree)
    assert stem not in BANNED_NAMES
    if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
        assert "from __future__ import annotations" in text


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_gives_up_on_types(path):
    """typing.Any is not used, but where the list says why."""
    uses = {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}
    uses |= {name.rpartition(".")[2] for name in imported(parsed(path)) if "typing" in name}

    assert ("Any" in uses) == (name_of(path) in ANY_ALLOWED)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_asserts_or_swallows(path):
    """No `assert` for a user's mistake, no bare except, no handler that only passes."""
    for node in ast.walk(parsed(path)):
        assert not isinstance(node, ast.Assert), f"assert at line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except at line {node.lineno}"
            is_silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not is_silent, f"an error is swallowed at line {node.lineno}"


def test_public_names_are_exactly_those_that_import():
    """Each name of __all__ can be imported, is listed by dir(), and no other name is public."""
    for name in edgeprune.__all__:
        assert getattr(edgeprune, name) is not None
    public = {name for name in dir(edgeprune) if not name.startswith("_")}
    rooms = {name for name in public if name in ROOMS}
    of_the_module = {"annotations", "importlib", "TYPE_CHECKING"}

    assert sorted(edgeprune.__all__) == edgeprune.__all__
    assert public - rooms - of_the_module == set(edgeprune.__all__) - {"__version__"}


def test_a_public_name_is_what_its_home_defines():
    """The lazy names are the objects of the modules that the type checker sees."""
    for node in parsed(PACKAGE / "__init__.py").body:
        if is_type_checking(node):
            for line in node.body:
                home = importlib.import_module(line.module)
                for alias in line.names:
                    assert getattr(edgeprune, alias.name) is getattr(home, alias.name)


def test_no_function_shares_its_name_with_a_package():
    """A public function never hides a room of the same name."""
    assert set(edgeprune.__all__) & set(ROOMS) == set()


def test_an_unknown_name_is_an_attribute_error():
    """Asking for a name that is not there fails as it does for any module."""
    with pytest.raises(AttributeError, match="no attribute 'prunee'"):
        _ = edgeprune.prunee


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda p: p.stem)
def test_every_test_states_its_law(path):
    """Each test function has a docstring that is a sentence."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = ast.get_docstring(node)
            assert text, f"{node.name} has no docstring"
            assert text.rstrip().endswith((".", ")", ">", "`")), node.name


def test_test_files_have_names_of_their_own():
    """No two files under tests/ share a basename, as they are imported side by side."""
    names = [path.name for path in TEST_FILES if path.name != "conftest.py"]

    assert len(names) == len(set(names))
