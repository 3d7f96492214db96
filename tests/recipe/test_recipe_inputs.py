"""Example inputs from their description."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.recipe.example import example_inputs
from edgeprune.recipe.inputs import DTYPES, InputSpec, parse_inputs

SPECS = st.builds(
    InputSpec,
    shape=st.lists(st.integers(1, 999), min_size=1, max_size=5).map(tuple),
    dtype=st.sampled_from(DTYPES),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2x3x224x224", [((2, 3, 224, 224), "float32")]),
        ("2x128:int64", [((2, 128), "int64")]),
        ("1", [((1,), "float32")]),
        ("2x16:int64,2x16", [((2, 16), "int64"), ((2, 16), "float32")]),
        (" 2x4 , 2x4:bool ", [((2, 4), "float32"), ((2, 4), "bool")]),
    ],
)
def test_text_gives_shapes_and_dtypes(text, expected):
    """Sizes are joined by x, the dtype follows a colon, inputs are separated by commas."""
    assert [(spec.shape, spec.dtype) for spec in parse_inputs(text)] == expected


@settings(deadline=None)  # a loaded machine is not a fault of the parser
@given(st.lists(SPECS, min_size=1, max_size=4))
def test_writing_and_reading_a_description_is_the_identity(specs):
    """What str() writes, parse_inputs reads back."""
    assert list(parse_inputs(",".join(str(spec) for spec in specs))) == specs


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("", "''"),
        ("2x", "'2x'"),
        ("2*3", "'2*3'"),
        ("2x3,", "''"),
        ("2x-3", "'2x-3'"),
        ("2x0", "got a 0"),
        ("2x3:int7", "'int7'"),
        ("2x3:", "got ''"),
    ],
)
def test_an_unreadable_description_names_its_culprit(text, culprit):
    """The error quotes the part that cannot be read."""
    with pytest.raises(UsageError, match="reading the input shape") as caught:
        parse_inputs(text)

    assert culprit in str(caught.value)


def test_example_inputs_vary_and_are_seeded():
    """Floats are normal, integers cover 0-9, booleans take both values; equal seeds agree."""
    text = "64x32,64x32:int64,64x32:bool"
    floats, integers, booleans = example_inputs(parse_inputs(text), seed=3)
    again = example_inputs(parse_inputs(text), seed=3)
    other = example_inputs(parse_inputs(text), seed=4)

    assert abs(float(floats.mean())) < 0.1
    assert abs(float(floats.std()) - 1) < 0.1
    assert integers.unique().tolist() == list(range(10))
    assert booleans.dtype == torch.bool
    assert booleans.unique().numel() == 2
    assert all(torch.equal(a, b) for a, b in zip((floats, integers, booleans), again, strict=True))
    assert not torch.equal(floats, other[0])


def test_example_inputs_leave_the_global_seed_alone():
    """Making examples draws nothing from torch's global generator."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    example_inputs(parse_inputs("2x3"), seed=9)

    assert torch.equal(torch.rand(3), expected)
