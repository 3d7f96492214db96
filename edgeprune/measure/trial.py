"""Load a file in a process of its own, so that a crash of ONNX Runtime is a finding, not an end.

python -m edgeprune.measure.trial MODEL
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from edgeprune.errors import UsageError
from edgeprune.measure.runners.local import worker_environment
from edgeprune.measure.session import open_session

_REFUSED = 2
_TIMEOUT_SECONDS = 600.0


def require_loadable(model: Path) -> None:
    """Load `model` in a fresh process.

    Raises UsageError with ONNX Runtime's own words if it refuses the file, or with the signal if
    loading it ends the process.
    """
    command = [sys.executable, "-P", "-m", "edgeprune.measure.trial", str(model.absolute())]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            env=worker_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise _not_loadable(model, f"nothing within {_TIMEOUT_SECONDS:g} s") from error
    if done.returncode == _REFUSED:
        raise UsageError(done.stderr.strip(), where=str(model))
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise _not_loadable(model, f"a crash of ONNX Runtime ({name})")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise _not_loadable(model, f"a process that ended with {done.returncode}: {last}")


def _not_loadable(model: Path, got: str) -> UsageError:
    return UsageError(
        f"loading the model at {model}: expected a file that ONNX Runtime runs, got {got}. "
        f"Export it again or check the file.",
        where=str(model),
    )


def main(arguments: list[str]) -> int:
    """Load the file; 0 if that worked, 2 with a message on stderr if it was refused."""
    try:
        open_session(Path(arguments[0]), threads=1)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
