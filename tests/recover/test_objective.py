"""The distillation objective against formulas written out in NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from edgeprune.errors import DataError, UserCodeError
from edgeprune.recipe.task_loss import task_loss
from edgeprune.recover.objective import (
    distance_to_teacher,
    floating_outputs,
    gives_class_scores,
    matching_error,
    objective,
    softened_divergence,
)


def _softmax(scores):
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.fixture
def scores():
    """Scores of a student and a teacher, (5, 7) each."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 7)) * 3, rng.normal(size=(5, 7)) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.5])
def test_divergence_is_the_sum_of_p_log_p_over_q_times_the_squared_temperature(scores, temperature):
    """T² · Σ p · log(p / q), averaged over the batch, with p of the teacher."""
    student, teacher = scores
    p, q = _softmax(teacher / temperature), _softmax(student / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()

    got = softened_divergence(torch.tensor(student), torch.tensor(teacher), temperature)

    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_gradient_of_the_divergence_is_the_temperature_times_q_minus_p(scores):
    """Hinton's gradient, by hand: T · (q - p) / B for each student score."""
    student, teacher = scores
    leaf = torch.tensor(student, requires_grad=True)
    p, q = _softmax(teacher / 3.0), _softmax(student / 3.0)

    softened_divergence(leaf, torch.tensor(teacher), 3.0).backward()

    np.testing.assert_allclose(leaf.grad.numpy(), 3.0 * (q - p) / 5, rtol=1e-10)


def test_divergence_vanishes_only_where_the_scores_agree(scores):
    """The teacher's own scores, shifted by a constant per sample, cost nothing; others cost."""
    student, teacher = scores

    same = softened_divergence(torch.tensor(teacher + 4.0), torch.tensor(teacher), 2.0)
    other = softened_divergence(torch.tensor(student), torch.tensor(teacher), 2.0)

    assert abs(float(same)) < 1e-12
    assert float(other) > 0.01


def test_matching_error_weighs_each_output_by_its_own_variance():
    """Mean over outputs of mean((a - b)²) / var(b), with integer outputs left out."""
    rng = np.random.default_rng(1)
    a0, b0 = rng.normal(size=(2, 4, 3)) * 5
    a1, b1 = rng.normal(size=(2, 4, 2, 2)) * 100
    student = {"x": torch.tensor(a0), "y": (torch.tensor(a1), torch.tensor([1, 2]))}
    teacher = {"x": torch.tensor(b0), "y": (torch.tensor(b1), torch.tensor([3, 4]))}
    expected = (((a0 - b0) ** 2).mean() / b0.var() + ((a1 - b1) ** 2).mean() / b1.var()) / 2

    assert float(matching_error(student, teacher)) == pytest.approx(expected, rel=1e-12)


def test_matching_never_magnifies_an_output_that_hardly_varies():
    """A variance below 1 does not divide: mean((a - b)²) itself."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 8, 3)) * 0.01

    got = float(matching_error(torch.tensor(a), torch.tensor(b)))

    assert got == pytest.approx(((a - b) ** 2).mean(), rel=1e-12)


def test_structures_of_every_kind_reach_the_users_loss():
    """A tuple, a dict or a dataclass comes to the loss as the model returned it."""

    @dataclasses.dataclass
    class Found:
        box: torch.Tensor

    def loss(outputs, target):
        kind = type(outputs)
        part = {tuple: lambda: outputs[1], dict: lambda: outputs["box"], Found: lambda: outputs.box}
        return (part[kind]() - target).abs().mean()

    box, target = torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0], [1.0]])
    for outputs in ((None, box), {"box": box}, Found(box)):
        assert float(task_loss(outputs, target, loss)) == 3.0


def test_matching_a_constant_output_stays_finite():
    """An output that does not vary is compared in its own unit: mean((2 - 0)²) = 4."""
    assert float(matching_error(torch.full((3, 2), 2.0), torch.zeros(3, 2))) == 4.0


def test_matching_outputs_of_other_shapes_is_refused():
    """A student with another head cannot be matched, and the message names both shapes."""
    with pytest.raises(DataError, match=r"\(3, 2\).*\(3, 5\).*distillation = 0"):
        matching_error(torch.zeros(3, 5), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("outputs", "target", "loss", "expected"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), None, True),
        (torch.zeros(4, 3), None, None, True),
        (torch.zeros(4, 3), torch.zeros(4, 3), torch.nn.functional.mse_loss, False),
        (torch.zeros(4, 1), torch.zeros(4), None, False),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long), None, False),
        ((torch.zeros(4, 3),), torch.zeros(4, dtype=torch.long), None, False),
    ],
)
def test_class_scores_are_one_row_of_two_or_more_per_sample(outputs, target, loss, expected):
    """Maps, tuples, single columns and regressions are matched, not softened."""
    assert gives_class_scores(outputs, target, loss) is expected


def test_the_weight_mixes_task_and_distance(scores):
    """(1 - a) · cross-entropy + a · distance, the cross-entropy written out."""
    student, teacher = scores
    classes = np.array([0, 3, 6, 1, 2], dtype=np.int32)
    entropy = -np.log(_softmax(student)[np.arange(5), classes]).mean()
    outputs, guide = torch.tensor(student), torch.tensor(teacher)
    distance = float(distance_to_teacher(outputs, guide, torch.tensor(classes), None, 2.0))

    got = objective(
        outputs, guide, torch.tensor(classes), loss=None, distillation=0.3, temperature=2.0
    )

    assert float(got) == pytest.approx(0.7 * entropy + 0.3 * distance, rel=1e-12)


def test_without_a_target_only_the_teacher_counts(scores):
    """Target None gives the distance itself, whatever the weight."""
    outputs, guide = (torch.tensor(s) for s in scores)

    got = objective(outputs, guide, None, loss=None, distillation=0.2, temperature=2.0)

    assert float(got) == float(softened_divergence(outputs, guide, 2.0))


def test_default_loss_refuses_outputs_that_are_not_class_scores():
    """Cross-entropy on a dict says to give a loss; on classes out of range too."""
    with pytest.raises(DataError, match=r"got dict and Tensor.*Data\(loss"):
        task_loss({"a": torch.zeros(2, 3)}, torch.zeros(2), None)
    with pytest.raises(DataError, match=r"integer targets below C"):
        task_loss(torch.zeros(2, 3), torch.tensor([0, 7]), None)


def test_an_error_in_the_users_loss_is_theirs_and_keeps_its_cause():
    """The user's exception is chained, and a loss that is not a scalar is named."""

    def broken(outputs, target):
        raise KeyError("aux")

    with pytest.raises(UserCodeError, match=r"at broken.*KeyError") as caught:
        task_loss(torch.zeros(2, 3), torch.zeros(2), broken)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(UserCodeError, match=r"one scalar tensor, got \(2, 3\)"):
        task_loss(torch.zeros(2, 3), torch.zeros(2), lambda o, t: o)


def test_floating_outputs_come_in_a_fixed_order_without_indices_and_nones():
    """Nested tuples and dicts are flattened in order."""
    a, b = torch.zeros(1), torch.ones(2)

    got = floating_outputs({"p": (a, None), "q": [torch.tensor([1]), b]})

    assert got[0] is a
    assert got[1] is b
    assert len(got) == 2
