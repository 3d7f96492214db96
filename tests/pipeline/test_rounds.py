"""The rounds: what goes, what stays gone, and what is undone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import ProofFailed
from edgeprune.graph.analysis import analyze
from edgeprune.pipeline import rounds
from edgeprune.pipeline.equality import prove_whole, require_same_model
from edgeprune.pipeline.seeding import seeded
from edgeprune.pipeline.widths import step_plan, wanted_plan, whole_plan
from edgeprune.planning.allocate import Request
from edgeprune.release.report import Round
from edgeprune.scoring.scores import score
from edgeprune.surgery.shrink import shrink


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 32)
        self.b = nn.Linear(32, 48)
        self.c = nn.Linear(48, 3)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


@pytest.fixture
def chain():
    """The analysis of a chain of 32 and 48 hidden units."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return analyze(Chain().eval(), (torch.randn(2, 6),))


def _rounds(dense, shares, allocation="uniform", multiple=1):
    """Plans after each round without training: (whole plan, current analysis)."""
    current, whole = dense, None
    for share in shares:
        request = Request(share, allocation, multiple)
        scores = score(current, "l2")
        wanted = wanted_plan(dense, whole, scores, request)
        step = step_plan(dense, current, whole, wanted, scores, request)
        if step.axes:
            whole = whole_plan(dense, whole, step, share)
            small = shrink(current, step)
            current = analyze(small, current.captured.args)
        yield whole, current


def test_rounding_does_not_stall_small_widths(chain):
    """32 units at multiples of 16, four rounds to one half: 16 are left, though no single round
    asks for fewer than 24 of the 32 it finds."""
    shares = [0.5 ** (r / 4) for r in (1, 2, 3, 4)]

    *_, (whole, _) = _rounds(chain, shares, multiple=16)

    widths = {group.width: len(group.keep) for group in whole.groups}
    assert widths == {32: 16, 48: 32} or widths == {32: 16, 48: 16}


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_what_is_gone_stays_gone(chain, allocation):
    """Each round's kept units are a subset of the last one's, and their number is the share's."""
    last = None
    for whole, current in _rounds(chain, [0.8, 0.6, 0.3], allocation):
        kept = {g.name: set(g.keep) for g in whole.groups}
        if last is not None:
            assert all(kept[name] <= last[name] for name in kept)
        assert [g.width for g in current.groups] == [len(g.keep) for g in whole.groups]
        last = kept
    assert sum(map(len, last.values())) == pytest.approx(0.3 * 80, abs=1)


def test_one_round_is_the_plan_itself(chain):
    """With unchanged weights, several uniform rounds by l2 end where scores are re-estimated only
    on survivors; one round alone keeps exactly the units of the largest norms."""
    ((whole, _),) = _rounds(chain, [0.5])
    module = chain.captured.module
    a, b = module.get_parameter("a.weight"), module.get_parameter("b.weight")
    bias = module.get_parameter("a.bias")
    norms = (a**2).sum(1) + bias**2 + (b**2).sum(0)

    best = sorted(norms.detach().numpy().argsort()[-16:].tolist())

    kept = next(group for group in whole.groups if group.width == 32)
    assert list(kept.keep) == best


def test_without_training_the_rounds_slice_the_dense_weights(task, prepared, rounds_of):
    """The delivered tensors are the dense ones at the places of the composed plan, bit by bit."""
    job = prepared(task({"epochs = 1.0": "epochs = 0.0", "drop = 0.05": "drop = 1.0"}))

    pruning = rounds_of(job)

    delivered, dense = pruning.state.module.state_dict(), job.dense.captured.module.state_dict()
    assert [r.accepted for r in pruning.rounds] == [True, True]
    for name, mask in pruning.plan.keep_mask().items():
        expected = dense[name][torch.tensor(mask)].reshape(delivered[name].shape)
        assert torch.equal(delivered[name], expected), name


def test_the_same_seed_gives_the_same_weights(task, prepared, rounds_of):
    """Two runs of the rounds, training included, agree bit for bit; another seed does not."""
    results = [rounds_of(task(change)) for change in ({}, {}, SEED)]

    one, two, other = (r.state.module.state_dict()["0.weight"] for r in results)
    assert torch.equal(one, two)
    assert one.shape != other.shape or not torch.equal(one, other)


SEED = {'criterion = "l1"': 'criterion = "random"\nseed = 7'}


def test_training_recovers_and_leaves_the_dense_model_alone(task, prepared, rounds_of):
    """A recovered round is better than the removed one; the teacher's tensors do not move."""
    changes = {
        "rounds = 2": "rounds = 1",
        "= 0.5 }": "= 0.2 }",
        "drop = 0.05": "drop = 1.0",
        'criterion = "l1"': 'criterion = "random"',
    }
    job = prepared(task(changes))
    before = {k: v.clone() for k, v in job.dense.captured.module.state_dict().items()}

    (record,) = rounds_of(job).rounds

    assert record.accuracy.recovered > record.accuracy.removed + 0.1
    assert record.keep_fraction == pytest.approx(0.2, abs=0.06)
    for name, value in job.dense.captured.module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_final_epochs_are_undone_when_they_do_harm(task, prepared, rounds_of):
    """A learning rate of 10 ruins the model, or its loss; the accuracy before is kept."""
    changes = {
        "epochs = 1.0": "epochs = 0.0\nfinal_epochs = 0.2",
        "learning_rate = 0.05": "learning_rate = 10.0",
        "drop = 0.05": "drop = 1.0",
        "rounds = 2": "rounds = 1",
    }

    pruning = rounds_of(task(changes))

    before = pruning.rounds[-1].accuracy.recovered
    assert pruning.state.accuracy >= before
    assert pruning.final.accepted is (pruning.final.accuracy >= before)


def test_the_whole_plan_is_proved_and_a_foreign_model_is_not(chain):
    """The delivered model passes; one with another width, or another function, does not."""
    *_, (whole, current) = _rounds(chain, [0.7, 0.5])
    *_, (_, wider) = _rounds(chain, [0.6])
    delivered = current.captured.module

    assert prove_whole(chain, whole, delivered, seed=0).error <= 1e-4
    with pytest.raises(ProofFailed, match=r"whole plan at a\.bias"):
        prove_whole(chain, whole, wider.captured.module, seed=0)

    replayed = shrink(chain, whole)
    twin = shrink(chain, whole)
    twin.forward = lambda x: replayed(x) * 1.01
    with pytest.raises(ProofFailed, match="whole plan at the output"):
        require_same_model(chain, shrink(chain, whole), twin, seed=0)
    assert np.isfinite(whole.unit_keep_fraction)


@pytest.mark.parametrize("through", ["loader", "sampler", "batch sampler", "its sampler"])
def test_a_generator_of_the_splits_own_is_seeded_with_the_step(through):
    """DataLoader(generator=...) or a sampler's: two steps of one seed give one order, whatever ran
    in between."""
    own = torch.Generator().manual_seed(7)
    numbers = torch.utils.data.TensorDataset(torch.arange(16))
    sampler = torch.utils.data.RandomSampler(numbers, generator=own)
    batches = torch.utils.data.BatchSampler(sampler, 16, drop_last=False)
    if through == "batch sampler":
        batches = Shuffled(own)
    options = {
        "loader": {"batch_size": 16, "shuffle": True, "generator": own},
        "sampler": {"batch_size": 16, "sampler": sampler},
    }.get(through, {"batch_sampler": batches})
    loader = torch.utils.data.DataLoader(numbers, **options)
    orders = []
    for seed in (3, 4, 3):
        with seeded(seed, (loader,)):
            orders.append(next(iter(loader))[0].tolist())

    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


class Shuffled:
    """One batch of sixteen in an order of its own generator."""

    def __init__(self, generator):
        self.generator = generator

    def __iter__(self):
        yield torch.randperm(16, generator=self.generator).tolist()

    def __len__(self):
        return 1


def test_the_same_units_again_are_no_refusal():
    """Half a step that leaves the units of a refused round was not tried: half as far again. After
    four in a row there is nothing between, and the run ends and says so."""
    record = Round(round=2, criterion="l1", keep_fraction=0.8, accepted=False, seconds=0, why="x")
    again = rounds._Done(record=record, fingerprint="f", checkpoint=None)
    way = rounds._Way(state=None, step=Fraction(1, 3))

    for _ in range(3):
        rounds._move(way, again, Fraction(1, 3))
    assert (way.refusals, way.step, way.stopped) == (0, Fraction(1, 24), None)

    rounds._move(way, again, Fraction(1, 24))
    assert "no smaller step leaves other units" in way.stopped
