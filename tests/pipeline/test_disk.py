"""A disk that fails: one clear error, exit code 5, nothing lost, and the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from edgeprune.errors import EnvironmentFailed
from edgeprune.measure.settings import Settings
from edgeprune.pipeline.disk import on_disk
from edgeprune.pipeline.run import run
from edgeprune.recipe.schema import load_recipe

LEAST = Settings(
    runs=11, least_runs=11, seconds=0.05, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2
)
CHANGES = {
    "epochs = 1.0": "epochs = 0.1",
    "drop = 0.05\nbudget": "drop = 1.0\nbudget",
    "accuracy_drop = 0.05": "accuracy_drop = 1.0",
}


class Disk:
    """Fails the opening of the n-th file below a folder for writing, as the system would."""

    def __init__(self):
        self.folder, self.left, self.code, self.opened = None, 0, 0, 0

    def hook(self, event, args):
        if event != "open" or self.folder is None or not isinstance(args[0], str | bytes):
            return
        path = os.fsdecode(args[0])
        writes = args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and path.startswith(self.folder):
            self.opened += 1
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code), path)


DISK = Disk()
sys.addaudithook(DISK.hook)


@pytest.fixture
def disk():
    """The disk, working again afterwards."""
    yield DISK
    DISK.folder, DISK.left = None, 0


def _facts(recipe_path):
    """A target without a clock: these runs need no latency."""
    (recipe_path.parent / "board.toml").write_text('status = "facts"\nsources = ["a sheet"]\n')
    recipe_path.write_text(recipe_path.read_text() + '[target]\nname = "board.toml"\n')
    return load_recipe(recipe_path)


def _attempt(recipe, out):
    """(bundle, None), or (None, the environment's error)."""
    try:
        return run(recipe, out=out), None
    except EnvironmentFailed as error:
        return None, error


def test_a_full_disk_at_any_file_loses_nothing(task, disk):
    """ENOSPC at the first file that a run writes, at the fourth, ... : EnvironmentFailed says
    where; the same call goes on with the steps that were done, until the build is there."""
    recipe = _facts(task(CHANGES))
    out = recipe.base_dir / "out"
    failures, steps = 0, []
    for count in range(1, 60, 3):
        disk.folder, disk.left, disk.code, disk.opened = str(out), count, errno.ENOSPC, 0
        bundle, error = _attempt(recipe, out)
        if bundle is not None:
            break
        failures += 1
        assert error.exit_code == 5
        assert "space" in str(error)
        assert not out.exists()
        journal = out.with_name("out.work") / "journal.jsonl"
        lines = journal.read_text().splitlines() if journal.exists() else []
        now = [json.loads(line)["step"] for line in lines]
        assert now[: len(steps)] == steps
        steps = now

    assert failures >= 4
    assert bundle.outcome == "pass"
    assert steps[:3] == ["run", "round 1", "round 2"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_the_environments_fault(task, disk, code):
    """Read-only, no rights, no quota: exit code 5 before any work, with the path."""
    recipe = _facts(task(CHANGES))
    disk.folder, disk.left, disk.code = str(recipe.base_dir / "out"), 1, code

    with pytest.raises(EnvironmentFailed, match=r"out\.work"):
        run(recipe, out=recipe.base_dir / "out")
    assert not (recipe.base_dir / "passes.txt").exists()


def test_a_place_below_a_file_is_the_environments_fault(task):
    """The folder of --out is a file: exit code 5, and the file stays."""
    recipe = _facts(task(CHANGES))
    blocked = Path(recipe.base_dir / "blocked")
    blocked.write_text("a file")

    with pytest.raises(EnvironmentFailed, match="a file where a folder should be"):
        run(recipe, out=blocked / "out")
    assert blocked.read_text() == "a file"


@pytest.mark.parametrize(
    "place", ["n" * 252, "n" * 300, f"{'n' * 300}/out", "/proc/x", "/proc/x/out"]
)
def test_an_odd_place_is_the_environments_fault(task, place):
    """A name too long for the disk, by itself or with `.work` behind it, and a file system that
    makes no folders: exit code 5 before any work."""
    recipe = _facts(task(CHANGES))

    with pytest.raises(EnvironmentFailed, match=r"too long|cannot be made") as caught:
        run(recipe, out=recipe.base_dir / place)
    assert caught.value.exit_code == 5
    assert not (recipe.base_dir / "passes.txt").exists()


def test_a_file_of_the_user_that_is_missing_is_not_the_disks_fault(tmp_path):
    """FileNotFoundError is taken for the disk's only in the output, its work or above them."""
    out = tmp_path / "out"
    for place in (out, out / "model.onnx", tmp_path / "out.work" / "steps" / "1", tmp_path):
        with pytest.raises(EnvironmentFailed), on_disk(out):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(place))
    for place in (tmp_path / "images.npz", tmp_path / "outer", None):
        with pytest.raises(FileNotFoundError), on_disk(out):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", place)


def test_a_finished_bundle_outlives_a_full_disk(task, disk):
    """--fresh over a finished bundle, then ENOSPC: the old bundle is still whole."""
    recipe = _facts(task(CHANGES))
    out = recipe.base_dir / "out"
    run(recipe, out=out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    disk.folder, disk.left, disk.code = str(out), 12, errno.ENOSPC

    with pytest.raises(EnvironmentFailed):
        run(recipe, out=out, fresh=True)

    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
