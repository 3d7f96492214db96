"""A whole run: the stages in their order, from a recipe to a sealed bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeprune.errors import ProofFailed, UsageError
from edgeprune.measure.settings import Settings
from edgeprune.pipeline.account import provenance_of, report_of, report_of_failed_proof
from edgeprune.pipeline.delivery import deliver
from edgeprune.pipeline.disk import on_disk
from edgeprune.pipeline.equality import prove_whole
from edgeprune.pipeline.judgement import judge_build
from edgeprune.pipeline.preparation import Job, chosen_target, prepare
from edgeprune.pipeline.progress import Progress, Silent
from edgeprune.pipeline.rounds import prune_in_rounds
from edgeprune.pipeline.seeding import seeded
from edgeprune.pipeline.speed import find_goal
from edgeprune.pipeline.work import FAILED, Work, open_work, target_hash
from edgeprune.recipe.schema import Recipe, recipe_hash
from edgeprune.release.bundle import (
    Bundle,
    check_destination,
    is_bundle,
    open_bundle,
    seal,
    staging_folder,
)
from edgeprune.release.differences import differences
from edgeprune.targets import Target


def run(
    recipe: Recipe,
    *,
    out: Path,
    target: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    measuring: Settings | None = None,
) -> Bundle:
    """Carry out a recipe and leave a judged bundle at `out`; its exit code tells the verdict.

    target: a name that wins over the recipe's. measuring: the effort of the latency measurement,
    default the target's preset. A finished bundle of the same recipe and target is returned if its
    files are as the manifest says; a damaged one, or one of another recipe, is refused unless
    `fresh`. An interrupted run of the same recipe goes on
    after its last finished step (`DIR.work/journal.jsonl`). Everything random follows [prune]
    seed, and the global generators of torch, NumPy and random are left as they were.

    Raises ProofFailed when a removal is not what it claims (then `out` holds only the report, or
    the bundle of before, and the report is in the work folder),
    BudgetNotMet when no removal reaches the budget, UsageError, ModelNotSupported and
    EnvironmentFailed (a full disk, a folder that cannot be written) as the stages do.
    """
    progress = progress or Silent()
    device = chosen_target(recipe, target)
    with on_disk(out):
        finished = finished_bundle(recipe, device, out, fresh=fresh)
    if finished is not None:
        progress.note(f"{out} is finished and the recipe is the same: nothing was run again")
        return finished
    with on_disk(out), open_work(out, recipe, device, fresh=fresh) as work:
        _say_what_is_there(work, progress)
        staging = _clean_staging(out)
        with seeded(recipe.prune.seed):
            job = prepare(recipe, device, measuring, progress)
        try:
            return _carry_out(job, out, work, staging, progress)
        except ProofFailed as error:
            _seal_failure(job, out, work, str(error), progress)
            raise


def _seal_failure(job: Job, out: Path, work: Work, why: str, progress: Progress) -> None:
    """Leave the report of a failed proof at `out`; beside it, where a good bundle lies there."""
    place = out
    if is_bundle(out) and open_bundle(out).report.pruned is not None:
        place = work.folder / FAILED
        progress.note(f"{out} stays as it was; the report of the failed proof is in {place}")
    _clean_staging(place)
    seal(place, report_of_failed_proof(job, why), provenance_of(job, 0, 0))


def _say_what_is_there(work: Work, progress: Progress) -> None:
    if work.resumed:
        progress.note(f"going on after {work.journal.steps[-1]!r}, from {work.folder}")
    if work.torn:
        progress.note("the journal's last line was cut short: that step is done again")


def _carry_out(job: Job, out: Path, work: Work, staging: Path, progress: Progress) -> Bundle:
    pruning = prune_in_rounds(job, find_goal(job, work, progress), work, progress)
    if pruning.plan.axes:
        progress.stage("prove the whole plan")
        prove_whole(job.dense, pruning.plan, pruning.state.module, seed=job.seed)
    delivery = deliver(job, pruning, staging, work.folder, progress)
    judgement = judge_build(job, pruning, delivery, work.journal, progress)
    progress.stage("write the bundle")
    report = report_of(job, pruning, delivery, judgement)
    for verdict in judgement.verdicts:
        progress.note(verdict.line())
    return seal(out, report, provenance_of(job, len(pruning.rounds), judgement.test_reads))


def finished_bundle(recipe: Recipe, target: Target, out: Path, *, fresh: bool) -> Bundle | None:
    """The bundle at `out` if it was made from this recipe and target; None if there is none.

    Raises UsageError when it was made from others or a file of it is missing, changed or new
    (unless `fresh`), or `out` is something else.
    """
    check_destination(out)
    if fresh or not is_bundle(out):
        return None
    bundle = open_bundle(out)
    if bundle.report.pruned is None:  # only the report of a failed proof
        return None
    made_from = bundle.manifest.made_from
    now = (recipe_hash(recipe), target_hash(target))
    if (made_from.recipe_sha256, made_from.target_sha256) == now:
        return _whole(bundle)
    changed = "target" if made_from.recipe_sha256 == recipe_hash(recipe) else "recipe"
    raise UsageError(
        f"running at {out}: expected a bundle of this recipe and target, or nothing, got one of "
        f"another {changed}. Use --fresh to replace it, or another --out.",
        where=str(out),
    )


def _whole(bundle: Bundle) -> Bundle:
    """The bundle, every file as it was sealed: its verdict is about those files and no others."""
    found = differences(bundle)
    if found:
        raise UsageError(
            f"running at {bundle.path}: expected the files of the finished bundle as its manifest "
            f"lists them, got another: {found[0]}. Use --fresh to make it again, or another "
            f"--out.",
            where=str(bundle.path),
        )
    return bundle


def _clean_staging(out: Path) -> Path:
    """An empty folder for the files of the bundle."""
    staging = staging_folder(out)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging
