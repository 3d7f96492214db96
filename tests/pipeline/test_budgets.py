"""Budgets: what was asked for is what is left; what cannot be reached is said before any work."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from edgeprune.errors import BudgetNotMet, UsageError
from edgeprune.gates.verdict import Verdict
from edgeprune.measure.machine import machine_state
from edgeprune.measure.samples import PairedSamples, Ratio, Samples
from edgeprune.pipeline import budget, speed
from edgeprune.pipeline import round as one_round
from edgeprune.pipeline.budget import budget_verdict
from edgeprune.pipeline.preparation import chosen_target, prepare
from edgeprune.pipeline.progress import Silent
from edgeprune.pipeline.round import fresh_batches
from edgeprune.pipeline.speed import find_goal
from edgeprune.pipeline.work import open_work
from edgeprune.planning.cost import cost
from edgeprune.recipe.schema import load_recipe

QUICK = {"epochs = 1.0": "epochs = 0.0", "drop = 0.05\nbudget": "drop = 1.0\nbudget"}


def _budget(text, **more):
    return {**QUICK, "{ keep_fraction = 0.5 }": f"{{ {text} }}", **more}


@pytest.mark.parametrize(("kind", "count"), [("macs", "macs"), ("params", "params")])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_share_of_the_cost_is_met_and_not_overshot(
    task, prepared, rounds_of, kind, count, allocation
):
    """What is left is within the budget; with single units, at most a tenth of it is given away."""
    changes = _budget(
        f"{kind}_fraction = 0.4", **{"multiple = 4": f'multiple = 1\nallocation = "{allocation}"'}
    )
    job = prepared(task(changes))

    pruning = rounds_of(job)

    left = getattr(cost(pruning.state.analysis.captured), count)
    share = left / getattr(cost(job.dense.captured), count)
    verdict = budget_verdict(job, pruning, None)
    assert 0.3 <= share <= 0.4
    assert (verdict.outcome, verdict.limit) == ("pass", 0.4)
    assert verdict.observed == pytest.approx(share)


@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
def test_global_leaves_no_more_units_than_asked(task, prepared, rounds_of, criterion, multiple):
    """However widths are rounded, round after round: at most half of the units, and the verdict's
    limit is the half that was asked for."""
    changes = _budget(
        "keep_fraction = 0.5",
        **{
            "multiple = 4": f'multiple = {multiple}\nallocation = "global"',
            "rounds = 2": "rounds = 3",
            'criterion = "l1"': f'criterion = "{criterion}"',
        },
    )
    job = prepared(task(changes))

    verdict = budget_verdict(job, rounds_of(job), None)

    assert (verdict.outcome, verdict.limit) == ("pass", 0.5)
    assert 0.4 <= verdict.observed <= 0.5


def test_more_units_than_asked_are_a_failure(task, prepared, rounds_of):
    """Whatever the rounds left: more than the limit does not pass."""
    job = prepared(task(_budget("keep_fraction = 0.5")))
    pruning = dataclasses.replace(rounds_of(job), asked=0.4)

    verdict = budget_verdict(job, pruning, None)

    assert (verdict.outcome, verdict.limit) == ("fail", 0.4)


def test_the_way_to_the_budget_is_geometric(task, rounds_of):
    """Two rounds to 0.25 of the MACs: half of them after the first."""
    pruning = rounds_of(task(_budget("macs_fraction = 0.25", **{"multiple = 4": "multiple = 1"})))

    dense = pruning.goal.dense.macs
    shares = [r.macs / dense for r in pruning.rounds]
    assert 0.35 <= shares[0] <= 0.5
    assert 0.15 <= shares[1] <= 0.25


def test_a_budget_out_of_reach_says_what_would_be_reached(task, rounds_of):
    """One thousandth of the MACs, at widths of 8: exit code 1, the limit and the best share."""
    changes = _budget("macs_fraction = 0.001", **{"multiple = 4": "multiple = 8"})

    with pytest.raises(
        BudgetNotMet, match=r"expected at most 0.001, got at least 0\.\d+"
    ) as caught:
        rounds_of(task(changes))
    assert caught.value.exit_code == 1


def test_a_share_of_units_below_the_smallest_widths_is_out_of_reach(task, rounds_of):
    """Widths 16 and 24 in multiples of 4 leave 8 of 40 units at least: 0.2 is met, 0.19 is not."""
    with pytest.raises(BudgetNotMet, match=r"at most 0\.19, got at least 0\.2 "):
        rounds_of(task({"keep_fraction = 0.5": "keep_fraction = 0.19"}))


@pytest.mark.parametrize("text", ["", "keep_fraction = 0.5, macs_fraction = 0.5", "speedup = 0.5"])
def test_a_budget_is_exactly_one_key_in_its_range(task, text):
    """None, two, or a speedup below 1: refused when the recipe is read."""
    with pytest.raises(UsageError, match="budget"):
        load_recipe(task(_budget(text)))


def _measured_as(monkeypatch, law):
    """Replace the clock by a law: MACs -> speedup. Returns the list of candidates it was asked."""
    asked = []

    def fake(job, candidate, work, progress):
        found = law(candidate.macs)
        asked.append(candidate.macs)
        return speed.Probe(
            keep_fraction=candidate.keep_fraction,
            macs=candidate.macs,
            ratio=found,
            low=found * 0.98,
            high=found * 1.02,
            pairs=10,
        )

    monkeypatch.setattr(speed, "_measured", fake)
    return asked


def _goal(path):
    recipe = load_recipe(path)
    job = prepare(recipe, chosen_target(recipe, None), None, Silent())
    with open_work(recipe.base_dir / "out", recipe, job.target, fresh=False) as work:
        return job, find_goal(job, work, Silent()), work.journal.steps


@pytest.mark.parametrize("power", [0.4, 1.0, 1.6])
def test_a_speedup_is_found_by_few_measurements_and_journaled(task, monkeypatch, power):
    """Latency falls as some power of the MACs that nobody tells: the largest candidate whose lower
    bound beats the budget by the margin is found, and asked again nothing is measured."""
    path = task(_budget("speedup = 1.8", **{"multiple = 4": "multiple = 1"}))
    job = prepare(load_recipe(path), chosen_target(load_recipe(path), None), None, Silent())
    dense = cost(job.dense.captured).macs

    def law(macs):
        return (dense / macs) ** power

    asked = _measured_as(monkeypatch, law)

    _, goal, steps = _goal(path)
    candidates = speed._candidates(job)
    fit = [c for c in candidates if law(c.macs) * 0.98 >= 1.8 * 1.03]
    chosen = next(c for c in candidates if c.keep_fraction == goal.units)
    assert chosen in fit
    assert chosen.macs * 1.05 >= max(c.macs for c in fit)
    assert len(asked) <= 7
    assert len([s for s in steps if s.startswith("probe")]) == len(asked)

    measured = len(asked)
    assert _goal(path)[1] == goal
    assert len(asked) == measured


def test_a_speedup_out_of_reach_says_what_the_smallest_reaches(task, monkeypatch):
    """A device where nothing helps: BudgetNotMet with the best ratio that was measured."""
    _measured_as(monkeypatch, lambda macs: 1.25)

    with pytest.raises(BudgetNotMet, match=r"expected at least 3, got at most 1\.25"):
        _goal(task(_budget("speedup = 3.0")))


def test_a_speedup_wants_a_target_that_can_be_measured(task):
    """A profile of facts has no clock: refused before the rounds, with what to use instead."""
    path = task(_budget("speedup = 2.0"))
    (path.parent / "board.toml").write_text('status = "facts"\nsources = ["a data sheet"]\n')
    path.write_text(path.read_text() + '[target]\nname = "board.toml"\n')

    with pytest.raises(UsageError, match=r"board.*macs_fraction"):
        _goal(path)


def test_candidates_are_timed_as_the_second_of_two_with_the_dense_model_first(task, monkeypatch):
    """The baseline of every measurement is the dense file, the candidate a smaller one."""
    seen = []

    def timed(baseline, candidate, target, settings, *, progress):
        seen.append([initializers(onnx.load(path)) for path in (baseline, candidate)])
        state = machine_state()
        return PairedSamples(
            baseline=(_process(2.0), _process(2.02)),
            candidate=(_process(1.0), _process(1.01)),
            baseline_first=(True, False),
            settings=settings,
            threads=1,
            batch=1,
            before=state,
            after=state,
        )

    def initializers(model):
        return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)

    monkeypatch.setattr(speed, "measure_pairs", timed)
    _, goal, steps = _goal(task(_budget("speedup = 1.5")))

    assert seen
    assert all(first == seen[0][0] > second for first, second in seen)
    assert 0 < goal.units < 1
    assert sum(step.startswith("probe") for step in steps) == len(seen)


def _process(ms):
    return Samples(
        model_sha256="0",
        times_ms=(ms,) * 11,
        load_ms=1.0,
        first_ms=1.0,
        peak_rss_mib=1.0,
        onnxruntime="0",
    )


def test_a_budget_of_speedup_is_judged_by_the_final_measurement(task, monkeypatch, rounds_of):
    """The bound of the interval decides: at 2.1 [1.9, 2.3] a budget of 2 is inconclusive."""
    _measured_as(monkeypatch, lambda macs: 9.0)
    pruning = rounds_of(task(_budget("speedup = 2.0")))
    seen = []

    def judge(evidence):
        seen.append(evidence)
        return (_verdict(evidence.least_speedup),)

    monkeypatch.setattr(budget, "judge", judge)
    monkeypatch.setattr(budget, "LatencyEvidence", lambda **kw: type("E", (), kw))

    verdict = budget_verdict(None, pruning, object())

    assert (verdict.gate, verdict.outcome, verdict.interval) == (
        "budget",
        "inconclusive",
        (1.9, 2.3),
    )
    assert seen[0].least_speedup == 2.0


def _verdict(limit):
    found = Ratio(ratio=2.1, low=1.9, high=2.3, pairs=10)
    return Verdict(
        gate="speedup",
        outcome="inconclusive",
        observed=found.ratio,
        limit=limit,
        unit="x",
        interval=(found.low, found.high),
        count=found.pairs,
        why="the interval holds the limit",
    )


def _refusing(monkeypatch, refuse):
    """A guard that refuses the attempts that `refuse` names by number, from 1."""
    attempts = []

    def judge(job, recovered):
        attempts.append(recovered)
        bad = len(attempts) in refuse
        return not bad, "undone, by the test" if bad else "accepted, by the test"

    monkeypatch.setattr(one_round, "judge_accuracy", judge)


def test_a_refused_round_is_undone_and_tried_again_at_half_the_step(task, rounds_of, monkeypatch):
    """Two rounds to 1/4 of the MACs, the second refused: it goes to 2^-1.5 instead, then on."""
    _refusing(monkeypatch, {2})
    changes = _budget("macs_fraction = 0.25", **{"multiple = 4": "multiple = 1"})

    pruning = rounds_of(task(changes))

    shares = [r.macs / pruning.goal.dense.macs for r in pruning.rounds]
    assert [r.accepted for r in pruning.rounds] == [True, False, True, True]
    assert [r.round for r in pruning.rounds] == [1, 2, 3, 4]
    for share, expected in zip(shares, (0.5, 0.25, 2**-1.5, 0.25), strict=True):
        assert 0.6 * expected <= share <= expected
    assert pruning.stopped is None


def test_three_refusals_end_the_run_with_the_last_accepted_model(
    task, prepared, rounds_of, monkeypatch
):
    """The first round is accepted, nothing after it: its model is what is left, and why is said."""
    _refusing(monkeypatch, set(range(2, 99)))
    job = prepared(task(_budget("macs_fraction = 0.2", **{"multiple = 4": "multiple = 1"})))

    pruning = rounds_of(job)

    assert [r.accepted for r in pruning.rounds if r.proof] == [True, False, False, False]
    assert "third to be refused" in pruning.stopped
    assert cost(pruning.state.analysis.captured).macs == pruning.rounds[0].macs
    assert budget_verdict(job, pruning, None).outcome == "fail"
    assert "third to be refused" in budget_verdict(job, pruning, None).why


def test_units_that_were_refused_are_not_trained_again(task, rounds_of, monkeypatch):
    """Half a step that rounds to the same widths is refused at once, with the first reason."""
    _refusing(monkeypatch, {1})
    changes = _budget(
        "keep_fraction = 0.5", **{"multiple = 4": "multiple = 8", "rounds = 2": "rounds = 1"}
    )

    pruning = rounds_of(task(changes))

    again = [r for r in pruning.rounds if "same units" in r.why]
    assert again
    assert all(r.proof is None and "by the test" in r.why for r in again)
    assert pruning.rounds[0].accepted is False


def test_scores_are_estimated_on_fresh_samples_every_round():
    """Rounds of 4 samples over a split of 3 batches of 2: each goes on where the last one ended."""
    split = [(["a", "a"], 0), (["b", "b"], 1), (["c", "c"], 2)]
    arrays = [(np.zeros((2, 1)), label) for _, label in split]

    labels = [[t for _, t in fresh_batches(arrays, skip=4 * n, samples=4)] for n in range(3)]

    assert labels == [[0, 1], [2, 0], [1, 2]]
