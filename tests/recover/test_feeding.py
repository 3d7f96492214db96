"""Batches of every kind that the data contract allows become calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeprune.errors import DataError
from edgeprune.recipe.feeding import batch_size, call_arguments, move_target, pairs

CPU = torch.device("cpu")


def test_inputs_become_positional_or_keyword_arguments():
    """Array -> one argument, tuple or collated list -> several, dict -> by name."""
    x, ids = np.ones((2, 3), np.float32), np.array([[1], [2]])

    assert [a.dtype for a in call_arguments((x, ids), CPU)[0]] == [torch.float32, torch.int64]
    assert len(call_arguments([x, ids], CPU)[0]) == 2
    assert call_arguments(torch.ones(2), CPU)[0][0].tolist() == [1, 1]
    args, kwargs = call_arguments({"x": x, "ids": ids}, CPU)
    assert args == ()
    assert kwargs["ids"].tolist() == [[1], [2]]


def test_a_list_of_numbers_is_one_array_of_labels():
    """[3, 1, 2] is a target of three labels, not a structure of three."""
    assert move_target([3, 1, 2], CPU).tolist() == [3, 1, 2]
    assert move_target({"a": ([1.5], None)}, CPU)["a"][1] is None


def test_a_read_only_array_is_copied_before_torch_sees_it():
    """Arrays of a mapped file cannot be written; a tensor that shares them would be undefined."""
    x = np.arange(6.0).reshape(2, 3)
    x.flags.writeable = False

    tensor = call_arguments(x, CPU)[0][0]
    tensor += 1

    assert x[0, 0] == 0.0


def test_the_batch_is_the_first_dim_of_the_first_input():
    """For arrays, tuples and dicts alike; a number has none."""
    assert batch_size(np.zeros((5, 2))) == 5
    assert batch_size((np.zeros((4, 2)), np.zeros(9))) == 4
    assert batch_size({"x": torch.zeros(3)}) == 3
    with pytest.raises(DataError, match="batch as first dim"):
        batch_size(3.0)


def test_what_is_not_a_pair_is_named_by_its_place():
    """The second batch, an array without target, is refused as batch 1."""
    with pytest.raises(DataError, match=r"at batch 1: expected a pair.*ndarray"):
        list(pairs([(np.zeros(2), None), np.zeros(2)]))


def test_an_array_of_objects_is_refused():
    """Strings in a batch are data of the wrong kind, said with the type."""
    with pytest.raises(DataError, match="expected an array or tensor of numbers"):
        call_arguments(np.array([object()]), CPU)
