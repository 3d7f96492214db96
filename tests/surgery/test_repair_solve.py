"""The normal equations, against SciPy's least squares on the rows written out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from edgeprune.surgery import repair_solve
from edgeprune.surgery.repair_layouts import Dense, Kernel
from edgeprune.surgery.repair_solve import Equations


def reference(
    X: np.ndarray, y: np.ndarray, start: np.ndarray, ridge: float, *, bias: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """min |y - X w - b|² + ridge · mean diagonal · |w - start|², as one stacked problem."""
    centred = X - X.mean(0) if bias else X
    pull = np.sqrt(ridge * (centred**2).sum() / X.shape[1])
    left = np.vstack([X, pull * np.eye(X.shape[1])])
    if bias:
        ones = np.concatenate([np.ones(len(X)), np.zeros(X.shape[1])])
        left = np.hstack([left, ones[:, None]])
    solution, *_ = scipy.linalg.lstsq(left, np.vstack([y, pull * start]))
    return (solution[:-1], solution[-1]) if bias else (solution, None)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("summed", [False, True], ids=["rows held", "products summed"])
@pytest.mark.parametrize("count", [200, 9], ids=["tall", "wide"])
def test_the_solution_is_that_of_least_squares(count, summed, bias, monkeypatch):
    """Added up in batches, summed or held, more rows than unknowns or fewer: SciPy's solution."""
    monkeypatch.setattr(repair_solve, "_SUMMED_COLUMNS", 512 if summed else 0)
    draw = np.random.default_rng(0)
    X, start = draw.normal(1.0, 1.0, (count, 24)), draw.normal(size=(24, 3))
    y = X @ start + draw.normal(2.0, 1.0, (count, 3))
    equations = Equations(Dense(outputs_first=False), torch.from_numpy(start))
    for part in np.array_split(np.arange(count), 4):
        equations.add(torch.from_numpy(X[part])[None], torch.from_numpy(y[part])[None])

    solved = equations.solve((1e-3, 0.5), bias=bias)

    for ridge, (weight, shift) in zip((1e-3, 0.5), solved, strict=True):
        want, want_shift = reference(X, y, start, ridge, bias=bias)
        np.testing.assert_allclose(weight.numpy(), want, rtol=1e-7, atol=1e-9)
        assert (shift is None) == (not bias)
        if shift is not None:
            np.testing.assert_allclose(shift.numpy(), want_shift, rtol=1e-7, atol=1e-9)


def test_groups_are_problems_of_their_own():
    """Each channel of a depthwise weight solves its own least squares, with its own ridge."""
    draw = np.random.default_rng(1)
    layout = Kernel(
        weight_shape=(4, 1, 3),
        stride=(1,),
        padding=(0,),
        dilation=(1,),
        groups=4,
        transposed=False,
    )
    start = draw.normal(size=(4, 1, 3))
    X = draw.normal(size=(4, 50, 3)) * np.array([0.1, 1, 10, 100])[:, None, None]
    y = draw.normal(size=(4, 50, 1))
    equations = Equations(layout, torch.from_numpy(start))
    equations.add(torch.from_numpy(X), torch.from_numpy(y))

    ((weight, _),) = equations.solve((1e-2,), bias=False)

    for channel in range(4):
        want, _ = reference(X[channel], y[channel], start[channel].T, 1e-2, bias=False)
        np.testing.assert_allclose(weight[channel].numpy().T, want, rtol=1e-9)


def test_a_channel_that_hears_nothing_keeps_its_weight():
    """Where all inputs are zero there is nothing to learn from, with a ridge or without."""
    start = torch.randn(5, 2, dtype=torch.float64)
    equations = Equations(Dense(outputs_first=False), start)
    equations.add(torch.zeros(1, 30, 5).double(), torch.randn(1, 30, 2).double())

    for weight, _ in equations.solve((0.0, 1e-3), bias=False):
        assert torch.equal(weight, start)


def test_without_a_ridge_repeated_inputs_share_their_weight():
    """A singular system is solved with the least change, not refused."""
    x = torch.randn(1, 40, 1, dtype=torch.float64)
    equations = Equations(Dense(outputs_first=False), torch.zeros(2, 1).double())
    equations.add(torch.cat([x, x], dim=2), 6 * x)

    ((weight, _),) = equations.solve((0.0,), bias=False)

    torch.testing.assert_close(weight, torch.full((2, 1), 3.0).double())
