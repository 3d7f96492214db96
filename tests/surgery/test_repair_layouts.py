"""A reader as a matrix product, against the operators themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.surgery.repair_layouts import Dense, Kernel, Layout

ALL = 10**6

some = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def require_product(layout: Layout, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> None:
    """X · matrix is y, row by row, and the weight comes back from the matrix."""
    rows, wanted = layout.rows(x, y, ALL, torch.Generator())

    torch.testing.assert_close(rows @ layout.matrix(weight), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(layout.weight(layout.matrix(weight)).to(weight.dtype), weight)


@pytest.mark.parametrize("lead", [(), (7,), (2, 5), (2, 3, 4)])
def test_linear_is_a_product(lead):
    """y = X · matrix for linear and matmul, whatever dims come before the last."""
    torch.manual_seed(0)
    x, weight = torch.randn(*lead, 6), torch.randn(4, 6)

    require_product(Dense(outputs_first=True), x, weight, F.linear(x, weight))
    require_product(Dense(outputs_first=False), x, weight.t(), x @ weight.t())


@st.composite
def convolutions(draw):
    """Kernel, stride, padding, dilation and groups of one to three spatial dims."""
    dims = draw(st.integers(1, 3))
    numbers = lambda low, high: st.tuples(*[st.integers(low, high)] * dims)  # noqa: E731
    return {
        "dims": dims,
        "kernel": draw(numbers(1, 3)),
        "stride": draw(numbers(1, 3)),
        "padding": draw(numbers(0, 2)),
        "dilation": draw(numbers(1, 2)),
        "groups": draw(st.sampled_from([1, 2, 4])),
        "transposed": draw(st.booleans()),
        "batched": draw(st.booleans()),
    }


@some
@given(case=convolutions())
def test_convolution_is_a_product(case):
    """y = X · matrix for every convolution: strided, padded, dilated, grouped, transposed."""
    torch.manual_seed(1)
    dims, groups = case["dims"], case["groups"]
    x = torch.randn(*([2] if case["batched"] else []), 4, *[7, 6, 5][:dims])
    options = {key: case[key] for key in ("stride", "padding", "dilation")}
    if case["transposed"]:
        weight = torch.randn(4, 8 // groups, *case["kernel"])
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        # An output as long as this cannot have lost all its positions to the padding.
        options["padding"] = (0,) * dims
    else:
        weight = torch.randn(8, 4 // groups, *case["kernel"])
        run = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    layout = Kernel(
        weight_shape=tuple(weight.shape), groups=groups, transposed=case["transposed"], **options
    )

    require_product(layout, x, weight, run(x, weight, None, groups=groups, **options))


def test_a_transposed_convolution_with_padding_is_a_product():
    """Padding of a transposed convolution cuts its output; extra output padding adds to it."""
    x, weight = torch.randn(2, 3, 5, 4), torch.randn(3, 2, 3, 4)
    options = {"stride": (2, 3), "padding": (1, 2), "dilation": (1, 1)}
    layout = Kernel(weight_shape=(3, 2, 3, 4), groups=1, transposed=True, **options)

    y = F.conv_transpose2d(x, weight, None, output_padding=(1, 2), **options)
    require_product(layout, x, weight, y)


def test_rows_that_are_drawn_belong_together():
    """A sample of the rows is one of the rows of all, inputs with their own outputs."""
    x, weight = torch.randn(3, 2, 9, 9), torch.randn(5, 2, 3, 3)
    layout = Kernel(
        weight_shape=(5, 2, 3, 3),
        stride=(1, 1),
        padding=(1, 1),
        dilation=(1, 1),
        groups=1,
        transposed=False,
    )
    y = F.conv2d(x, weight, padding=1)

    rows, wanted = layout.rows(x, y, 60, torch.Generator().manual_seed(3))

    assert rows.shape == (1, 60, 18)
    torch.testing.assert_close(rows @ layout.matrix(weight), wanted, rtol=1e-4, atol=1e-4)
