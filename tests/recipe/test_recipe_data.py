"""Data: what is accepted, what is refused, and evaluation over a split."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import DataError, UserCodeError
from edgeprune.recipe.data import Data, accuracy, check_data, load_data
from edgeprune.recipe.evaluate import evaluate, to_inputs

RNG = np.random.default_rng(0)


def batches(count=3, size=4, labels=True):
    """Batches of (size, 5) inputs and integer labels 0-2."""
    made = []
    for _ in range(count):
        inputs = RNG.normal(size=(size, 5)).astype(np.float32)
        made.append((inputs, RNG.integers(0, 3, size) if labels else None))
    return made


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x, y=None):
        out = self.linear(x)
        return out if y is None else (out + y, y)


def test_good_data_is_accepted():
    """Arrays, tensors, tuples, dicts, loaders and unlabelled splits all pass the checks."""
    dataset = torch.utils.data.TensorDataset(torch.randn(9, 5), torch.arange(9) % 3)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    check_data(Data(train=loader, validation=batches(), test=batches(labels=False)))
    pair = [((np.zeros((2, 3)), torch.zeros(2, 1)), None)]
    check_data(Data(train=pair, validation=pair, test=pair, calibration=pair))
    named = [({"x": np.zeros((2, 3)), "y": np.ones((2, 1))}, np.array([0, 1]))]
    check_data(Data(train=named, validation=named, test=named))


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        (None, ["None"]),
        ([], ["at least one batch", "none"]),
        (iter(batches()), ["again and again", "one-shot list_iterator"]),
        (3, ["an iterable", "int"]),
        ([np.zeros((2, 5))], ["pairs (inputs, target)", "ndarray of shape (2, 5)"]),
        ([(np.zeros((4, 5)), np.zeros(3))], ["one length", "inputs 4, target 3"]),
        ([(np.full((2, 5), np.nan), None)], ["finite numbers in inputs", "10 of 10"]),
        ([(torch.tensor([[np.inf] + [0.0] * 4]), None)], ["finite", "1 of 5"]),
        ([(np.zeros((0, 5)), None)], ["the batch as first dim", "(0, 5)"]),
        ([(np.zeros((2, 5)), (np.zeros(2), np.zeros(2)))], ["one array", "tuple of 2", "Stack"]),
        ([(np.zeros((2, 5)), {"a": np.zeros(2)})], ["one array", "dict"]),
        ([(np.float32(3), None)], ["the batch as first dim", "shape ()"]),
        ([([["a", "b"]], None)], ["array or tensor of numbers"]),
        ([([[1.0], [1.0, 2.0]], None)], ["array or tensor of numbers"]),
        ([(np.zeros((2, 6)), None)], ["as in train", "(B, 6)"]),
    ],
)
def test_a_bad_split_is_refused(split, parts):
    """Each fault of a split names the split, what was expected and what was found."""
    with pytest.raises(DataError) as caught:
        check_data(Data(train=batches(), validation=split, test=batches()))

    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_split_that_raises_is_the_users():
    """An exception inside a split's iteration is a UserCodeError with its cause."""

    class Broken:
        def __iter__(self):
            raise OSError("disk gone")

    with pytest.raises(UserCodeError, match="disk gone") as caught:
        check_data(Data(train=Broken(), validation=batches(), test=batches()))

    assert isinstance(caught.value.__cause__, OSError)


def test_a_factory_gives_data(tmp_path):
    """load_data calls the factory of a file; anything but Data is refused."""
    (tmp_path / "some_data.py").write_text(
        textwrap.dedent("""
        import numpy as np
        from edgeprune import Data

        def load():
            split = [(np.zeros((2, 3)), np.zeros(2, dtype=np.int64))]
            return Data(train=split, validation=split, test=split)

        def dictionary():
            return {"train": []}
        """)
    )

    assert isinstance(load_data("some_data.py:load", tmp_path), Data)
    with pytest.raises(DataError, match="expected edgeprune.Data, got dict"):
        load_data("some_data.py:dictionary", tmp_path)


@pytest.mark.parametrize(
    ("inputs", "positional", "keywords"),
    [
        (np.ones((2, 5), np.float32), 1, []),
        (torch.ones(2, 5), 1, []),
        ((np.ones((2, 5)), torch.ones(2)), 2, []),
        ([torch.ones(2, 5), torch.ones(2)], 2, []),
        ({"x": np.ones(2), "y": torch.ones(2)}, 0, ["x", "y"]),
    ],
)
def test_inputs_become_a_call(inputs, positional, keywords):
    """An array is one argument, a tuple several, a dict keywords; all are tensors."""
    args, kwargs = to_inputs(inputs)

    assert len(args) == positional
    assert list(kwargs) == keywords
    assert all(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values()))


def test_inputs_keep_their_dtype_and_their_source():
    """A read-only integer array becomes a tensor of its dtype that can be written to safely."""
    array = np.arange(3)
    array.setflags(write=False)
    (tensor,), _ = to_inputs(array)
    tensor += 1

    assert tensor.dtype == torch.int64
    assert array.tolist() == [0, 1, 2]


def test_evaluation_agrees_with_numpy():
    """Outputs and accuracy of a linear model equal W x + b and its argmax done in NumPy."""
    model = Named().train()
    split = batches(count=3)
    result = evaluate(model, split)
    inputs = np.concatenate([batch[0] for batch in split])
    labels = np.concatenate([batch[1] for batch in split])
    weight, bias = (p.detach().numpy() for p in model.linear.parameters())
    expected = inputs @ weight.T + bias

    np.testing.assert_allclose(result.outputs, expected, rtol=1e-5, atol=1e-6)
    assert result.value == np.mean(expected.argmax(1) == labels)
    assert np.array_equal(result.targets, labels)
    assert model.training


def test_evaluation_of_several_outputs_and_no_labels():
    """A tuple of outputs becomes a tuple of whole arrays; without labels there is no value."""
    split = [({"x": x, "y": np.ones((4, 1), np.float32)}, None) for x, _ in batches()]
    result = evaluate(Named(), split)

    assert [part.shape for part in result.outputs] == [(12, 3), (12, 1)]
    assert result.targets is None
    assert result.value is None


def test_the_users_metric_gets_the_whole_split():
    """The metric sees arrays of every sample, once."""
    seen = []

    def metric(outputs, targets):
        seen.append((type(outputs), outputs.shape, targets.shape))
        return 0.25

    assert evaluate(Named(), batches(), metric).value == 0.25
    assert seen == [(np.ndarray, (12, 3), (12,))]


@pytest.mark.parametrize("metric", [lambda o, t: 1 / 0, lambda o, t: float("nan")])
def test_a_failing_metric_is_the_users(metric):
    """A metric that raises, or gives NaN where it is to judge a model, is a UserCodeError."""
    with pytest.raises(UserCodeError, match="computing the metric"):
        evaluate(Named(), batches(), metric, usable="validation")


def test_labels_out_of_range_are_refused():
    """A label that the model has no class for is named, not counted as a miss."""
    with pytest.raises(DataError, match="labels from 0 to 2.*got labels from 1 to 3"):
        accuracy(np.zeros((2, 3)), np.array([1, 3]))


@pytest.mark.parametrize("split", [[], [*batches(1), *batches(1, labels=False)]])
def test_an_empty_or_half_labelled_split_is_refused(split):
    """Evaluation needs batches, and labels on all of them or on none."""
    with pytest.raises(DataError, match="evaluating at a split"):
        evaluate(Named(), split)


def test_a_split_that_cannot_say_its_length_is_read_all_the_same():
    """A DataLoader of an IterableDataset has a `__len__` that raises TypeError; zero is refused."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from torch.arange(40.0).reshape(8, 5)

    loader = torch.utils.data.DataLoader(Stream(), batch_size=4, collate_fn=_unlabelled)

    check_data(Data(train=batches(), validation=batches(), test=loader, calibration=loader))
    with pytest.raises(DataError, match="at least one batch"):
        check_data(Data(train=batches(), validation=batches(), test=[]))


def _unlabelled(rows):
    return torch.stack(rows), None


@pytest.mark.parametrize(
    ("targets", "part"),
    [
        (np.array([0.5, 1.5]), "2 of 2 that are none, such as 0.5"),
        (np.array([np.nan, 1.0]), "1 of 2 that are none, such as nan"),
        (np.array([1 + 1j, 0]), "got (1+1j) (complex128)"),
        (np.array([99.0, 1.0]), "labels from 1 to 99"),
    ],
)
def test_labels_are_whole_numbers_of_a_class(targets, part):
    """The default metric refuses what can match no class, by its value; 1.0 is a class, though."""
    with pytest.raises(DataError) as caught:
        accuracy(np.zeros((2, 4)), targets)
    assert part in str(caught.value)
    assert "the evaluated split" in str(caught.value)
    assert accuracy(np.eye(2), np.array([0.0, 1.0])) == 1.0
