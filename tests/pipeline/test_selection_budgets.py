"""Budgets by rounds with keep, only, fractions and min_width: met, or refused with the reason."""

from __future__ import annotations

import pytest

from edgeprune.errors import BudgetNotMet, PlanError
from edgeprune.pipeline.budget import budget_verdict
from edgeprune.pipeline.dry_run import dry_run
from edgeprune.recipe.schema import load_recipe

# Widths: 16 (0.weight and the depthwise 3.weight), 24 (6.weight; four positions in 11.weight).


def changes(budget: str, lines: str, **more: str) -> dict[str, str]:
    """The recipe's changes: no training, single units, another budget, more lines of [prune]."""
    return {
        "epochs = 1.0": "epochs = 0.0",
        "drop = 0.05\nbudget": "drop = 1.0\nbudget",
        "{ keep_fraction = 0.5 }": f"{{ {budget} }}\n{lines}",
        **more,
    }


def widths(pruning) -> list[int]:
    """What is left of each width."""
    return [len(group.keep) for group in pruning.plan.groups]


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize(
    ("lines", "budget", "holds"),
    [
        ('keep = ["11.*"]', "macs_fraction = 0.7", lambda a, b: b == 24),
        ('only = ["6.*"]', "params_fraction = 0.6", lambda a, b: a == 16),
        ('fractions = { "6.*" = 0.25 }', "macs_fraction = 0.4", lambda a, b: b in (4, 8)),
        ("min_width = 12", "macs_fraction = 0.6", lambda a, b: a >= 12 and b >= 12),
        ('min_width = { "6.*" = 20 }', "params_fraction = 0.9", lambda a, b: b >= 20),
    ],
)
def test_a_budget_is_met_by_what_may_go(
    task, prepared, rounds_of, allocation, lines, budget, holds
):
    """Parameters or MACs are within the budget, and nothing goes but what is asked."""
    asked = changes(budget, f'{lines}\nallocation = "{allocation}"')
    job = prepared(task(asked))

    pruning = rounds_of(job)

    assert budget_verdict(job, pruning, None).outcome == "pass"
    assert sum(widths(pruning)) < 40
    assert holds(*widths(pruning))


@pytest.mark.parametrize(
    ("lines", "budget", "options"),
    [
        ('keep = ["11.*"]', "macs_fraction = 0.1", "keep"),
        ('only = ["6.*"]\nmin_width = 12', "params_fraction = 0.2", "only and min_width"),
        ('fractions = { "*" = 0.9 }', "keep_fraction = 0.5", "fractions"),
        ("min_width = 12", "keep_fraction = 0.5", "min_width"),
        ('keep = ["11.*"]\nallocation = "global"', "keep_fraction = 0.5", "keep"),
    ],
)
def test_a_budget_that_they_forbid_is_refused_before_any_round(
    task, rounds_of, lines, budget, options
):
    """The message says how far removal could go, and which options stand in its way."""
    with pytest.raises(BudgetNotMet, match=f"the smallest width that {options} allow") as caught:
        rounds_of(task(changes(budget, lines)))

    assert "loosen" in str(caught.value)
    assert caught.value.exit_code == 1


def test_uniform_cuts_what_is_free_to_its_share_and_says_what_is_left(task, prepared, rounds_of):
    """Half of every width that may go: 8 of 16, all of 24; the verdict's limit is 32 of 40."""
    job = prepared(task(changes("keep_fraction = 0.5", 'keep = ["11.*"]')))

    pruning = rounds_of(job)
    verdict = budget_verdict(job, pruning, None)

    assert widths(pruning) == [8, 24]
    assert (verdict.outcome, verdict.limit, verdict.observed) == ("pass", 0.8, 0.8)
    assert "with what keep ask for" in verdict.why


def test_a_share_of_its_own_is_come_to_in_the_rounds_of_the_others(task, rounds_of):
    """Two rounds to 0.25 of 24 units while the rest stays: half of them after the first."""
    single = {"multiple = 4": "multiple = 1"}
    pruning = rounds_of(
        task(changes("keep_fraction = 1.0", 'fractions = { "6.*" = 0.25 }', **single))
    )

    assert widths(pruning) == [16, 6]
    assert [round(r.keep_fraction * 40) for r in pruning.rounds] == [16 + 12, 16 + 6]


def test_a_small_share_of_one_width_leaves_the_others_more(task, prepared, rounds_of):
    """global, half of all units: 24 cut to 4 leaves the 16 untouched, as 20 of 40 are half."""
    lines = 'fractions = { "6.*" = 0.16 }\nallocation = "global"'
    job = prepared(task(changes("keep_fraction = 0.5", lines)))

    pruning = rounds_of(job)

    assert widths(pruning) == [16, 4]
    assert budget_verdict(job, pruning, None).outcome == "pass"


@pytest.mark.parametrize("option", ["keep", "only"])
def test_a_pattern_without_a_match_ends_the_run_before_any_round(task, rounds_of, option):
    """A typing error in the recipe is no silent nothing."""
    with pytest.raises(PlanError, match=f"plan at {option}: .* got '9[.]weight'"):
        rounds_of(task(changes("keep_fraction = 0.5", f'{option} = ["9.weight"]')))


def test_the_dry_run_plans_what_the_run_does(task, rounds_of):
    """The widths of the last planned round are those of the run."""
    path = task(changes("macs_fraction = 0.6", 'keep = ["11.*"]\nmin_width = 5'))

    planned = dry_run(load_recipe(path))

    assert [len(group.keep) for group in planned.plan.groups] == widths(rounds_of(path))
