"""Running a graph in pieces: the same values as in one go, nothing written that is needed again."""

from __future__ import annotations

import pytest
import torch
from small_nets import net, noise
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.graph.inputs import Inputs
from edgeprune.graph.module import CapturedModule
from edgeprune.planning.plan import plan
from edgeprune.scoring.scores import score
from edgeprune.surgery import repair as repairing
from edgeprune.surgery.repair import refit
from edgeprune.surgery.repair_walk import GraphRunner
from edgeprune.surgery.shrink import shrink


def writing(writes_input: bool = False) -> nn.Module:
    """A net that writes into a value through a view of it, between two of its readers."""

    torch.manual_seed(0)

    def run(s: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if writes_input:
            x.mul_(2.0)
        y = torch.tanh(s.a(x))
        view = y[:, 2:5]
        z = s.b(y)
        view += 1.0
        y *= 3.0
        return s.d(torch.relu_(s.c(y) + z))

    return net(run, a=nn.Linear(4, 8), b=nn.Linear(8, 6), c=nn.Linear(8, 6), d=nn.Linear(6, 3))


def captured(model: nn.Module) -> CapturedModule:
    """Its graph."""
    return analyze(model, (noise(2, 4),)).captured.module


@pytest.mark.parametrize("stop", range(0, 30, 3))
def test_a_stretch_can_be_run_again(stop):
    """From any place on, as often as asked: the values there stay, the result is the module's."""
    module = captured(writing())
    runner = GraphRunner(module)
    x = noise(5, 4, seed=1)
    end = len(runner.order) - 1
    stop = min(stop, end)
    (result,) = runner.order[-1].all_input_nodes
    with torch.no_grad():
        want = module(x.clone())
        values = runner.begin(Inputs(args=(x,)))
        runner.go(values, 0, stop)
        for _ in range(2):
            trial = runner.copied(values, stop, end)
            runner.go(trial, stop, end)
            assert torch.equal(trial[result], want)


def test_values_are_forgotten_when_nothing_reads_them():
    """Behind the last reader of a value it is gone: memory is that of one place."""
    module = captured(writing())
    runner = GraphRunner(module)
    values = runner.begin(Inputs(args=(noise(5, 4),)))
    with torch.no_grad():
        runner.go(values, 0, len(runner.order) - 1)

    left = [node.name for node in values if node.op != "get_attr"]
    assert left == [node.name for node in runner.order[-1].all_input_nodes]


@pytest.mark.parametrize("bound", [0, 2**30])
def test_a_model_that_writes_into_its_input_is_repaired_like_one_that_does_not(bound, monkeypatch):
    """Both graphs read the same samples; neither sees what the other wrote."""
    monkeypatch.setattr(repairing, "_BOUND_BYTES", bound)
    samples = noise(60, 4, seed=3)
    states = []
    for given, writes in ((samples.clone(), True), (2.0 * samples, False)):
        analysis = analyze(writing(writes), (noise(2, 4),))
        decided = plan(analysis, score(analysis), keep_fraction=0.6)
        small = shrink(analysis, decided)
        report = refit(analysis, decided, small, [given])
        assert report.kept
        states.append(small.state_dict())
        if writes:
            assert torch.equal(given, samples)

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
