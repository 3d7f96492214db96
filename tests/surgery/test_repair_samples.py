"""Calibration samples: read as the example says, checked, divided, never mixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import image, net, noise
from torch import nn

import edgeprune
from edgeprune.errors import DataError
from edgeprune.graph.analysis import analyze
from edgeprune.graph.capture import Captured
from edgeprune.surgery.repair_samples import read_calibration


class Two(nn.Module):
    """Two inputs, one of them by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.a(x) + self.b(y)))


def captured() -> Captured:
    """A net with two inputs, one of them by keyword."""
    return analyze(Two(), (noise(2, 4),), {"y": noise(2, 3)}).captured


def single() -> Captured:
    """A net of one input."""
    model = net(lambda s, x: s.b(torch.relu(s.a(x))), a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    return analyze(model, (noise(2, 4),)).captured


def numbered(count: int, start: int = 0) -> torch.Tensor:
    """Samples that can be told apart: every value of sample i is i."""
    return torch.arange(start, start + count).float()[:, None].expand(count, 4).contiguous()


def test_every_fourth_sample_is_held_out_and_none_is_in_both():
    """Samples keep their order over batches of any size, and stop at the number asked for."""
    batches = [numbered(3), numbered(90, start=3), numbered(500, start=93)]

    found = read_calibration(single(), iter(batches), 203)

    fitted = torch.cat([p.inputs.args[0][:, 0] for p in found.fitted])
    held = torch.cat([p.inputs.args[0][:, 0] for p in found.held_out])
    assert held.tolist() == list(range(1, 203, 4))
    assert sorted([*fitted.tolist(), *held.tolist()]) == list(range(203))
    assert found.count == 203
    assert max(p.count for p in (*found.fitted, *found.held_out)) <= 64


@pytest.mark.parametrize(
    "batch",
    [
        {"x": np.zeros((6, 4), np.float32), "y": np.zeros((6, 3), np.float32)},
        (torch.zeros(6, 4), torch.zeros(6, 3)),
        [np.zeros((6, 4), np.float32), torch.zeros(6, 3)],
    ],
    ids=["dict", "tuple", "list"],
)
def test_inputs_may_be_named_or_in_order(batch):
    """However a batch names its inputs, they arrive as the model was captured with them."""
    found = read_calibration(captured(), [batch], 100)

    assert [tuple(v.shape) for v in found.held_out[0].inputs.args] == [(2, 4)]
    assert {k: tuple(v.shape) for k, v in found.held_out[0].inputs.kwargs.items()} == {"y": (2, 3)}


def test_what_is_no_tensor_comes_from_the_example():
    """A flag of the forward method is not asked of every batch."""
    model = net(
        lambda s, x, scale: s.b(torch.relu(s.a(x))) * scale, a=nn.Linear(4, 8), b=nn.Linear(8, 2)
    )
    found = read_calibration(analyze(model, (noise(2, 4), 3.0)).captured, [numbered(8)], 8)

    assert found.fitted[0].inputs.args[1] == 3.0


def test_a_fixed_batch_gives_whole_blocks():
    """A model that takes batches of 2 alone gets portions of 2; what is left over is not used."""
    model = net(
        lambda s, x: s.b(torch.relu(s.a(x)).view(2, 8)), a=nn.Linear(4, 8), b=nn.Linear(8, 2)
    )
    pruned = edgeprune.prune(model, (noise(2, 4),))

    better = edgeprune.repair(pruned, [noise(41, 4)])
    found = read_calibration(pruned.analysis.captured, [numbered(9)], 9)

    assert better.repaired.samples == 40
    assert {p.count for p in (*found.fitted, *found.held_out)} == {2}
    assert found.held_out[0].inputs.args[0][:, 0].tolist() == [2.0, 3.0]


NAN = torch.full((4, 4), float("nan"))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"expected at least 2 samples, got 0"),
        ([torch.zeros(1, 4)], r"expected at least 2 samples, got 1"),
        (torch.zeros(4, 4), r"expected an iterable of batches, got Tensor"),
        ({"x": torch.zeros(4, 4)}, r"expected an iterable of batches, got dict"),
        (None, r"expected an iterable of batches, got NoneType"),
        ([torch.zeros(4, 4), NAN], r"batch 1, input 0: expected finite numbers, got 16 of 16"),
        ([torch.zeros(4, 5)], r"expected shape \(B, 4\) as in the example, got \(4, 5\)"),
        ([np.zeros((4, 4))], r"expected torch.float32 as in the example, got torch.float64"),
        ([(torch.zeros(4, 4), torch.zeros(4))], r"got input 0, input 1. Give inputs alone"),
        ([{"z": torch.zeros(4, 4)}], r"expected the model's inputs .*, got z"),
        ([["a", "b"]], r"expected an array or tensor of numbers"),
    ],
)
def test_samples_that_do_not_fit_are_refused(batches, message):
    """One error names the batch, what was expected and what to do."""
    with pytest.raises(DataError, match=message):
        read_calibration(single(), batches, 100)


def test_inputs_of_different_lengths_are_refused():
    """Inputs of one batch have one length."""
    with pytest.raises(DataError, match=r"expected inputs of one length, got \[5, 6\]"):
        read_calibration(captured(), [(torch.zeros(6, 4), torch.zeros(5, 3))], 100)


def test_an_input_that_is_not_per_sample_is_shared():
    """A table that all samples use stays whole, and must be the same in every batch."""
    model = net(
        lambda s, x, table: s.b(torch.relu(s.a(x))) + table.sum(0),
        a=nn.Linear(4, 8),
        b=nn.Linear(8, 2),
    )
    found = analyze(model, (noise(2, 4), noise(5, 2))).captured
    table = noise(5, 2, seed=1)

    portions = read_calibration(found, [(numbered(5), table), (numbered(5), table)], 10)

    assert all(torch.equal(p.inputs.args[1], table) for p in portions.fitted)
    with pytest.raises(DataError, match="expected the same value in every batch"):
        read_calibration(found, [(numbered(5), table), (numbered(5), 2 * table)], 10)


def test_a_large_image_makes_small_portions():
    """The memory of one run is bounded by its largest value, not by the number of samples."""
    model = net(
        lambda s, x: s.b(torch.relu(s.a(x))).mean((2, 3)),
        a=nn.Conv2d(3, 64, 1),
        b=nn.Conv2d(64, 4, 1),
    )
    found = analyze(model, (image(2, size=256),)).captured

    portions = read_calibration(found, [image(8, size=256)], 8)

    # 64 channels of 256 x 256 in float32 are 16 MiB a sample.
    assert max(p.count for p in portions.fitted) == 4
