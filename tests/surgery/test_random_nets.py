"""Random small nets and random units: silenced = shrunk, plans compose, masks describe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from random_nets import build, steps
from small_nets import eager_silence, image, require_equal

from edgeprune.errors import EdgepruneError
from edgeprune.graph.analysis import Analysis, analyze
from edgeprune.planning.allocate import Request
from edgeprune.planning.plan import Plan, make_plan, read_plan
from edgeprune.scoring.scores import score
from edgeprune.surgery.compose import compose
from edgeprune.surgery.prove import prove
from edgeprune.surgery.shrink import shrink

X = image(2, size=4)

few = settings(
    deadline=None,
    max_examples=30,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def random_plan(analysis: Analysis, seed: int) -> Plan:
    """A random share of random units of every group, never a whole value."""
    draw = np.random.default_rng(seed)
    removed = {g.name: draw.random(g.width) < draw.random() for g in analysis.groups}
    for group in analysis.groups:
        removed[group.name][draw.integers(group.width)] = False
    removed = analysis.spare(removed, score(analysis, "random", seed=seed).values)
    return make_plan(analysis, removed, Request(), "random")


@few
@given(steps=steps, seed=st.integers(0, 99))
def test_silenced_is_shrunk(steps, seed):
    """Any units of any small net: proved, equal to the eager model with silenced readers.

    And the plan describes it: dense[mask] has the values of each shrunk tensor, and its JSON
    reads back as the same plan.
    """
    model = build(steps)
    analysis = analyze(model, (X,))
    plan = random_plan(analysis, seed)
    small = shrink(analysis, plan)

    outcome = prove(analysis, plan, small).require().outcome
    assert outcome in ("proved", "weak", "no change", "nothing removed")
    assert read_plan(plan.to_json()) == plan
    dense, left = analysis.captured.module.state_dict(), small.state_dict()
    for name, mask in plan.keep_mask().items():
        assert dense[name][torch.from_numpy(mask)].equal(left[name].reshape(-1)), name
    other = image(3, size=4, seed=seed)
    if _readers_are_layers(steps):
        with eager_silence(model, plan), torch.no_grad():
            expected = model(other)
        require_equal(small(other), expected)


def _readers_are_layers(steps) -> bool:
    """Means over channels and attention contract without a layer that a hook could silence."""
    return not {"scale", "mean", "tokens"} & {kind for kind, _ in steps}


@settings(few, max_examples=12)
@given(steps=steps, seed=st.integers(0, 99))
def test_two_surgeries_are_one(steps, seed):
    """Shrunk twice = the composed plan on the dense model, tensor by tensor.

    Left out: a width that fell to one unit (one head or group left is an ordinary layer, which
    can be cut where the dense one cannot) and shuffles (2 x 3 channels lose columns, 2 x 2 rows).
    """
    assume("shuffle" not in {kind for kind, _ in steps})
    analysis = analyze(build(steps), (X,))
    first = random_plan(analysis, seed)
    assume(all(len(group.keep) > 1 for group in first.groups))
    once = shrink(analysis, first)
    again = analyze(once, (X,))
    second = random_plan(again, seed + 1)
    twice = shrink(again, second)

    both = compose(analysis, first, second)
    replayed = shrink(analysis, both)
    assert list(replayed.state_dict()) == list(twice.state_dict())
    for name, value in twice.state_dict().items():
        assert value.equal(replayed.state_dict()[name]), name
    require_equal(replayed(X), twice(X), 1e-6)


@settings(few, max_examples=6)
@given(steps=steps)
def test_an_empty_plan_changes_nothing(steps):
    """Every unit kept: the same graph, bit for bit the same output, and no proof of anything."""
    model = build(steps)
    analysis = analyze(model, (X,))
    nothing = {g.name: np.zeros(g.width, dtype=bool) for g in analysis.groups}
    plan = make_plan(analysis, nothing, Request(keep_fraction=1.0), "random")
    same = shrink(analysis, plan)

    assert plan.axes == ()
    assert same.code == analysis.captured.module.code
    assert same(X).equal(analysis.captured.module(X))
    assert prove(analysis, plan, same).outcome == "nothing removed"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_any_share_leaves_a_net_that_runs(share):
    """The smallest share keeps a unit of every width."""
    from edgeprune.surgery.prune import prune

    drawn = (("conv", 6), ("dense", 3), ("halves", 2), ("tokens", 3), ("gate", 2), ("roll", 2))
    try:
        pruned = prune(build(drawn), (X,), keep_fraction=share)
    except EdgepruneError as error:
        pytest.fail(str(error))
    assert pruned.proof.holds
