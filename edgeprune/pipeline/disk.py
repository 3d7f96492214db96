"""A disk that fails is the environment's fault, and nothing that is finished is lost by it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from edgeprune.errors import EnvironmentFailed
from edgeprune.release.bundle import work_folder

_REASONS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the quota used up",
    errno.EFBIG: "a file larger than is allowed",
    errno.EROFS: "a read-only file system",
    errno.EACCES: "no right to write",
    errno.EPERM: "no right to write",
    errno.EIO: "an input/output error",
    errno.ENOTDIR: "a file where a folder should be",
}


@contextlib.contextmanager
def on_disk(out: Path) -> Iterator[None]:
    """Turn what the system says of the disk into EnvironmentFailed; other errors pass through."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        place = error.filename or work_folder(out)
        raise EnvironmentFailed(
            f"writing at {place}: expected a disk that can be written, got "
            f"{_REASONS[error.errno]}. Mend that and give the same command again: it goes on "
            f"after the last finished step in {work_folder(out)}.",
            where=str(place),
        ) from error
