"""The verdict on the budget: whether what was to go has gone."""

from __future__ import annotations

from edgeprune.gates.judging import judge
from edgeprune.gates.latency import LatencyEvidence
from edgeprune.gates.verdict import Outcome, Verdict
from edgeprune.measure.samples import PairedSamples
from edgeprune.pipeline.goal import UNIT_ROUNDING
from edgeprune.pipeline.preparation import Job
from edgeprune.pipeline.round import request_of
from edgeprune.pipeline.rounds import Pruning
from edgeprune.planning.cost import cost


def budget_verdict(job: Job, pruning: Pruning, paired: PairedSamples | None) -> Verdict:
    """Pass when the budget is met; a failure says which round ended the run, or what is pinned.

    A keep_fraction is held against itself, or against what rounded widths leave where that is
    more; MACs and parameters against the budget itself, a speedup against the bound of the final
    measurement.
    """
    goal = pruning.goal
    if goal.kind == "speedup":
        return _of_speedup(pruning, goal.value, paired)
    if goal.kind == "keep_fraction":
        return _of_units(job, pruning)
    left = goal.share(cost(pruning.state.analysis.captured))
    what = "MACs" if goal.kind == "macs_fraction" else "parameters"
    why = f"{goal.kind} {goal.value:g} of the dense model's {what}"
    met = left <= goal.value
    return _verdict("pass" if met else "fail", left, goal.value, None, _with_end(why, pruning))


def _of_speedup(pruning: Pruning, least: float, paired: PairedSamples | None) -> Verdict:
    if paired is None:  # the target was measurable when the budget was planned
        why = "no time was taken on the target"
        return _verdict("inconclusive", None, least, None, why, unit="x")
    (found,) = judge(LatencyEvidence(paired=paired, limit_ms=None, least_speedup=least))
    return Verdict(
        gate="budget",
        outcome=found.outcome,
        observed=found.observed,
        limit=least,
        unit=found.unit,
        interval=found.interval,
        count=found.count,
        why=_with_end(found.why, pruning),
    )


def _of_units(job: Job, pruning: Pruning) -> Verdict:
    """The limit allows for rounded widths; nothing removed although it was asked for is a failure
    too."""
    wanted, left = pruning.goal.value, pruning.plan.unit_keep_fraction
    limit = wanted if pruning.asked is None else pruning.asked
    said = f"keep_fraction {wanted:g} of the units"
    if limit > wanted:
        held = " and ".join(pruning.goal.held_by)
        held = f" and with what {held} ask for" if held else ""
        said += f", which leaves {limit:.4g} at widths in multiples of {job.multiple}{held}"
    nothing = request_of(job, wanted).removes and not pruning.plan.axes
    if nothing and pruning.stopped is None:
        pins = "; ".join(f"{pin.unit}: {pin.reason}" for pin in job.dense.pins[:3])
        said += f": nothing can be removed ({pins or 'widths too small for the multiple'})"
    missed = nothing or pruning.stopped is not None or left > limit + UNIT_ROUNDING
    return _verdict(
        "fail" if missed else "pass",
        left,
        limit,
        sum(group.width for group in pruning.plan.groups),
        _with_end(said, pruning),
    )


def _with_end(why: str, pruning: Pruning) -> str:
    if pruning.stopped is None:
        return why
    return f"{why}, but {pruning.stopped}. Allow a larger drop, train longer, or keep more"


def _verdict(
    outcome: Outcome,
    observed: float | None,
    limit: float,
    count: int | None,
    why: str,
    unit: str = "fraction",
) -> Verdict:
    return Verdict(
        gate="budget",
        outcome=outcome,
        observed=observed,
        limit=limit,
        unit=unit,
        interval=None,
        count=count,
        why=why,
    )
