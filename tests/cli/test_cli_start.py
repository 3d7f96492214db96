"""The program starts fast, imports little, and documents itself."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import typer
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app

COMMANDS = ("run", "inspect", "prune", "check", "bench", "verify", "targets")


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["run", "--help"], ["prune", "--help"]]
)
def test_help_imports_nothing_heavy(args):
    """Neither torch nor ONNX Runtime nor NumPy is loaded to print help or the version."""
    done = python(
        """
        import sys
        from edgeprune.cli.app import main
        try:
            main()
        except SystemExit as end:
            heavy = {"torch", "onnxruntime", "numpy", "onnx", "scipy"}
            print("LOADED", sorted(heavy & set(sys.modules)), end.code)
        """,
        *args,
    )

    assert done.stdout.splitlines()[-1] == "LOADED [] 0"


def test_module_and_version_agree():
    """`python -m edgeprune --version` prints the package's version."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", "--version"], capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (0, f"edgeprune {edgeprune.__version__}\n")


def test_every_command_and_option_has_help():
    """The commands are the documented ones, and nothing in them is without help text."""
    program = typer.main.get_command(app)

    assert set(program.commands) == set(COMMANDS)
    assert program.help
    leaves = {}
    for name, command in program.commands.items():
        assert command.help, name
        leaves |= getattr(command, "commands", None) or {name: command}
    for name, command in leaves.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "-q", "-v"} <= options


@pytest.mark.parametrize("args", [["nonsense"], ["run"], ["prune", "m:f", "--keep", "2"]])
def test_a_wrong_call_is_a_usage_error(args):
    """An unknown command, a missing argument and a value out of range exit with 2."""
    assert CliRunner().invoke(app, args).exit_code == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_missing_torch_says_what_to_install(as_json, tmp_path):
    """With torch blocked, a command that needs it exits with 5 and names the extra."""
    done = python(
        """
        import sys
        sys.modules["torch"] = None
        from edgeprune.cli.app import main
        main()
        """,
        "inspect",
        "torchvision:resnet18",
        *(["--json"] if as_json else []),
    )

    assert done.returncode == 5
    assert 'pip install "edgeprune[torch]"' in done.stderr
    assert "Traceback" not in done.stderr
    if as_json:
        assert json.loads(done.stdout)["error"]["type"] == "EnvironmentFailed"
    else:
        assert done.stdout == ""
