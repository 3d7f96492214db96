"""Every rule with every operand in turn from a layer, from data, or a tensor of the model.

An operand without a label beside one with is where a rule can be silently wrong: its own size
cannot follow. Either the layer is pinned, with a reason, or what remains is proved, and equals the
dense net whose removed positions are 0 and not heard by any reader.
"""

from __future__ import annotations

import pytest
import torch
from operator_examples import EXAMPLES
from operator_nets import Variant, net_of, variants

import edgeprune.graph.rules.every
from edgeprune.errors import InternalError
from edgeprune.graph import registry
from edgeprune.graph.analysis import Analysis, analyze_captured
from edgeprune.graph.capture import capture
from edgeprune.graph.inputs import Inputs
from edgeprune.graph.registry import known_overloads
from edgeprune.graph.rules.spread import (
    DEVIATIONS,
    DEVIATIONS_AND_MEANS,
    VARIANCES,
    VARIANCES_AND_MEANS,
)
from edgeprune.planning.plan import Plan, plan
from edgeprune.scoring.scores import score
from edgeprune.surgery.shrink import shrink
from edgeprune.surgery.silence import Silencer
from edgeprune.surgery.survivors import removed_units

aten = torch.ops.aten

assert edgeprune.graph.rules.every.FAMILIES
torch.set_num_threads(1)

MIXED = 1
"""Mixtures of sources tried for one call, besides the systematic ones."""


STATISTICS = (
    *(*VARIANCES, *DEVIATIONS, *VARIANCES_AND_MEANS, *DEVIATIONS_AND_MEANS),
    *(aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default),
    aten.pairwise_distance.default,
)
"""What is removed is left out of their statistic, not heard as 0: judged by the proof alone."""


def _error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.std()).item()


def _variants(target: torch._ops.OpOverload) -> list[Variant]:
    return [v for example in EXAMPLES[target] for v in variants(target, example, MIXED)]


def _judge(some: list[Variant]) -> set[tuple[str, int]]:
    """Plan, shrink, prove and compare; gives the removed dims."""
    made = net_of(some)
    analysis = analyze_captured(
        capture(made.module(), tuple(made.inputs), dynamic_batch=False), exact_only=False
    )
    decided = plan(analysis, score(analysis, "random", seed=1), keep_fraction=0.5)
    for variant, layers in zip(some, made.made, strict=True):
        for layer in layers:
            _require_pinned_or_planned(variant, layer, analysis, decided)
    if not decided.axes:
        return set()
    small = shrink(analysis, decided)
    fresh = [torch.randn(x.shape, generator=made.dice) for x in made.inputs]
    kept = analysis.kept_labels(removed_units(analysis, decided))
    with torch.no_grad():
        got = small(*fresh)
        proof = Silencer(analysis, analysis.captured.module, kept).outputs(
            Inputs(args=tuple(fresh))
        )
        want = made.silenced(decided, fresh)
    for variant, mine, proved, other in zip(some, got, proof, want, strict=True):
        assert _error(mine, proved) < 1e-4, f"{variant}: the proof fails"
        assert variant.target in STATISTICS or _error(mine, other) < 1e-4, f"{variant}: wrong"
    return {(axis.parameter, axis.dim) for axis in decided.axes}


def _require_pinned_or_planned(
    variant: Variant, layer: str, analysis: Analysis, decided: Plan
) -> None:
    """What the plan does not touch of a layer is pinned, with a reason."""
    if any((axis.parameter, axis.dim) == (layer, 0) for axis in decided.axes):
        return
    reasons = [p.reason for p in analysis.pins if (p.parameter, p.dim) == (layer, 0)]
    if not reasons:
        # Sizes of kernels and places read by number are pinned too, but not listed for people.
        labels = analysis.walk.labels
        axis = next(axis for axis in labels.axes if (axis.owner, axis.dim) == (layer, 0))
        classes = labels.classes()
        mine = classes[axis.first_label]
        reasons = [c.reason for flat, c in labels.pin_causes() if mine in classes[flat]]
    assert reasons, f"{variant}: {layer} is neither pinned nor in the plan"
    assert all(reasons)


# Numbers counted by position, and numbers written one after the other where a mask says.
STAYS = (
    *(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default),
    aten.masked_scatter.default,
)


def test_every_rule_has_an_example():
    """A rule without a worked call is a rule nobody tried with an operand from data."""
    assert [str(target) for target in known_overloads() if target not in EXAMPLES] == []


@pytest.mark.parametrize("target", EXAMPLES, ids=str)
def test_an_operand_from_data_pins_or_is_right(target):
    """Whatever of a layer may go beside data of full size, the rest computes what it did.

    And where labels can follow, something does go: a rule that pins everything proves nothing.
    """
    removed = _judge(_variants(target))

    assert bool(removed) != (target in STAYS)


WRONG = {
    "flip": (aten.flip.default, lambda t, x, dims: x),
    "roll": (aten.roll.default, lambda t, x, *rest: x),
    "softmax over its own axis": (aten.softmax.int, lambda t, x, *rest, **more: x),
    "running sum over its own axis": (aten.cumsum.default, lambda t, x, *rest, **more: x),
    "half of a matrix": (aten.triu.default, lambda t, x, *rest: x),
    "halves that change places": (aten.fft_fftshift.default, lambda t, x, *rest: x),
}
"""Rules whose sizes fit and whose positions are wrong: these operators are taken to change none."""


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_with_the_right_sizes_and_the_wrong_positions_is_caught(name, monkeypatch):
    """The oracle of this file is not the rules: it fails where one of them says "unchanged"."""
    target, wrong = WRONG[name]
    monkeypatch.setitem(registry._RULES, target, wrong)

    with pytest.raises((AssertionError, InternalError), match=r"proof fails|wrong|came|removed"):
        _judge(_variants(target))
