"""Names of inputs and outputs follow the user's forward."""

from __future__ import annotations

import collections

import pytest
from torch.utils import _pytree as pytree

from edgeprune.exporting.names import input_names, output_names, unique

Boxes = collections.namedtuple("Boxes", ["corners", "scores"])


def _names_in(forward, *args, **kwargs):
    return input_names(forward, pytree.tree_structure((args, kwargs)))


def test_inputs_are_called_as_the_parameters_of_forward():
    """Positions and keywords alike; an argument of a dict gives its keys, of a tuple its places."""

    def forward(image, *more, mask=None, **rest):
        raise NotImplementedError

    assert _names_in(forward, 0, mask=0) == ("image", "mask")
    assert _names_in(forward, 0, 0, 0) == ("image", "more_0", "more_1")
    assert _names_in(forward, {"ids": 0, "deep": {"x": 0}}) == ("ids", "deep_x")
    assert _names_in(forward, (0, 0), extra=0) == ("image_0", "image_1", "extra")


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (0, ("output",)),
        ((0, 0), ("output_0", "output_1")),
        ((0,), ("output_0",)),
        ({"logits": 0, "aux": (0, 0)}, ("logits", "aux_0", "aux_1")),
        ((0, {"a": 0}), ("output_0", "output_1_a")),
        (Boxes(0, 0), ("corners", "scores")),
    ],
)
def test_outputs_are_called_by_key_or_by_place(output, names):
    """One tensor is `output`; a sequence counts; a mapping or named tuple gives its keys."""
    assert output_names(pytree.tree_structure(output)) == names


def test_an_output_never_takes_the_name_of_an_input():
    """ONNX has one name space: output `x` beside input `x` becomes `x_out`."""
    assert output_names(pytree.tree_structure({"x": 0}), ["x"]) == ("x_out",)


def test_equal_names_are_told_apart():
    """Two dicts with one key between them: the second is numbered, past what is taken."""

    def forward(a, b):
        raise NotImplementedError

    assert _names_in(forward, {"x": 0}, {"x": 0}) == ("x", "x_1")
    assert unique(["x", "x", "y"], taken=["y", "x_1"]) == ["x", "x_2", "y_1"]


def test_a_class_without_names_for_its_children_gives_keys_or_places():
    """Registered with flatten and unflatten only: a mapping gives its keys, others count."""

    class Keyed(dict):
        pass

    class Bare:
        def __init__(self, *parts):
            self.parts = parts

    pytree.register_pytree_node(
        Keyed, lambda v: (list(v.values()), list(v)), lambda p, k: Keyed(zip(k, p, strict=True))
    )
    pytree.register_pytree_node(Bare, lambda v: (list(v.parts), None), lambda p, _: Bare(*p))

    keyed = Keyed(sample=0, more=Bare(0, {"deep": 0}))
    assert output_names(pytree.tree_structure(keyed)) == ("sample", "more_0", "more_1_deep")
