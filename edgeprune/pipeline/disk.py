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
    errno.ENAMETOOLONG: "a name that is too long for it",
    errno.ELOOP: "links that lead in a circle",
    errno.EBUSY: "a folder that something else holds",
    errno.ENOENT: "a folder that cannot be made there, or is gone",
}


@contextlib.contextmanager
def on_disk(out: Path) -> Iterator[None]:
    """Turn what the system says of the disk into EnvironmentFailed; other errors pass through.

    A file that is not there is the disk's fault only where it belongs to the output: elsewhere
    somebody asked for a file that never was.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        if error.errno == errno.ENOENT and not _belongs(error.filename, out):
            raise
        place = error.filename or work_folder(out)
        raise EnvironmentFailed(
            f"writing at {place}: expected a disk that can be written, got "
            f"{_REASONS[error.errno]}. Mend that, or choose another --out; the same command goes "
            f"on after the last finished step in {work_folder(out)}, if there is one.",
            where=str(place),
        ) from error


def _belongs(name: object, out: Path) -> bool:
    """Whether a file is the output, its work folder, in one of them, or a folder above them."""
    if not isinstance(name, str):
        return False
    place, ours = Path(name).absolute(), out.absolute()
    inside = place.is_relative_to(ours) or place.is_relative_to(work_folder(out))
    return inside or ours.is_relative_to(place)
