"""Each ONNX operator against ONNX Runtime, on the smallest file that has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from onnx_files import error, ort, write

from edgeprune.errors import ModelNotSupported
from edgeprune.recipe.onnx_call import known_operators
from edgeprune.recipe.onnx_model import from_onnx

RNG = np.random.default_rng(0)


def w(*shape: int) -> np.ndarray:
    """Weights of that shape."""
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    """A list of sizes or axes."""
    return np.array(values, np.int64)


IMAGE = (4, 6, 8)
BN = {"s": w(4), "b": w(4), "m": w(4), "v": np.abs(w(4)) + 0.5}

# Operator, its constants in order (None: left out), attributes, shape of a sample of its input.
LAYERS = [
    ("Conv", [w(6, 4, 3, 3), w(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}, IMAGE),
    ("Conv", [w(6, 2, 3, 1)], {"group": 2, "dilations": [2, 1]}, IMAGE),
    ("Conv", [w(6, 4, 3, 3)], {"pads": [0, 1, 2, 1]}, IMAGE),
    ("Conv", [w(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, IMAGE),
    ("Conv", [w(6, 4, 3, 3)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, IMAGE),
    ("Conv", [w(6, 4, 3)], {"pads": [1, 1]}, (4, 9)),
    ("Conv", [w(6, 4, 1, 3, 3)], {}, (4, 2, 5, 5)),
    ("ConvTranspose", [w(4, 3, 3, 3), w(3)], {"strides": [2, 2], "output_padding": [1, 1]}, IMAGE),
    ("ConvTranspose", [w(4, 3, 3)], {"pads": [1, 1], "group": 2}, (4, 9)),
    ("BatchNormalization", list(BN.values()), {"epsilon": 1e-3}, IMAGE),
    ("InstanceNormalization", [w(4), w(4)], {}, IMAGE),
    ("LayerNormalization", [w(8), w(8)], {}, IMAGE),
    ("LayerNormalization", [w(6, 8)], {"axis": 2}, IMAGE),
    ("LRN", [], {"size": 3, "alpha": 0.1}, IMAGE),
    ("Gemm", [w(3, 5), w(3)], {"transB": 1}, (5,)),
    ("Gemm", [w(5, 3), w(3)], {}, (5,)),
    ("Gemm", [w(5, 3), w(3)], {"alpha": 0.5, "beta": 2.0}, (5,)),
    ("MatMul", [w(8, 5)], {}, IMAGE),
    ("MatMul", [w(4, 8, 5)], {}, IMAGE),
    ("Einsum", [w(8, 5)], {"equation": "nchw,wk->nchk"}, IMAGE),
    ("PRelu", [np.abs(w(4, 1, 1))], {}, IMAGE),
    ("PRelu", [w(8)], {}, IMAGE),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGE),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, (4, 7, 7)),
    ("MaxPool", [], {"kernel_shape": [3, 2], "pads": [0, 0, 1, 1]}, IMAGE),
    ("MaxPool", [], {"kernel_shape": [3], "auto_pad": "SAME_UPPER", "strides": [2]}, (4, 8)),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, IMAGE),
    (
        "AveragePool",
        [],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        IMAGE,
    ),
    (
        "AveragePool",
        [],
        {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1},
        IMAGE,
    ),
    ("GlobalAveragePool", [], {}, IMAGE),
    ("GlobalMaxPool", [], {}, IMAGE),
]
POINTWISE = [
    *(
        (op, [], {}, IMAGE)
        for op in (
            "Abs",
            "Atan",
            "Ceil",
            "Cos",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LeakyRelu",
            "LogSoftmax",
            "Mish",
            "Neg",
            "Reciprocal",
            "Relu",
            "Round",
            "Selu",
            "Sigmoid",
            "Sign",
            "Sin",
            "Softmax",
            "Softplus",
            "Softsign",
            "Tanh",
            "Celu",
            "ThresholdedRelu",
            "Dropout",
            "Flatten",
            "Transpose",
        )
    ),
    ("HardSigmoid", [], {"alpha": 1 / 6}, IMAGE),
    ("Gelu", [], {"approximate": "tanh"}, IMAGE),
    ("Clip", [np.float32(-0.5), np.float32(0.7)], {}, IMAGE),
    ("Clip", [None, np.float32(0.7)], {}, IMAGE),
    ("Add", [w(4, 1, 1)], {}, IMAGE),
    ("Sub", [np.float32(0.3)], {}, IMAGE),
    ("Mul", [w(8)], {}, IMAGE),
    ("Div", [w(4, 1, 1) + 3], {}, IMAGE),
    ("Pow", [np.float32(2)], {}, IMAGE),
    ("Max", [w(8), w(6, 1)], {}, IMAGE),
    ("Min", [w(8)], {}, IMAGE),
    ("Mean", [w(8)], {}, IMAGE),
    ("Sum", [w(8), w(8)], {}, IMAGE),
    ("Softmax", [], {"axis": 1}, IMAGE),
    ("LpNormalization", [], {"axis": 1}, IMAGE),
]
MOVEMENT = [
    ("Reshape", [ints(0, 2, 2, -1)], {}, IMAGE),
    ("Reshape", [ints(-1, 24, 8)], {"allowzero": 1}, IMAGE),
    ("Flatten", [], {"axis": 3}, IMAGE),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}, IMAGE),
    ("Squeeze", [ints(1, -1)], {}, (1, 5, 1)),
    ("Unsqueeze", [ints(1, -1)], {}, (5,)),
    ("Concat", [w(2, 3, 6, 8)], {"axis": 1}, IMAGE),
    ("Slice", [ints(1), ints(2**63 - 1), ints(1), ints(2)], {}, IMAGE),
    ("Slice", [ints(-1), ints(-(2**63) + 1), ints(3), ints(-1)], {}, IMAGE),
    ("Slice", [ints(5, 0), ints(1, -2), ints(2, 3), ints(-2, 1)], {}, IMAGE),
    ("Gather", [np.int64(1)], {"axis": 1}, IMAGE),
    ("Gather", [ints(2, -1, 0)], {"axis": 3}, IMAGE),
    ("Gather", [ints(2, 1, 0, 3).reshape(2, 2)], {"axis": 1}, IMAGE),
    ("Expand", [ints(1, 4, 6, 8)], {}, (4, 1, 8)),
    ("Tile", [ints(1, 2, 1, 1)], {}, IMAGE),
    ("Pad", [ints(0, 1, 2, 0, 0, 0, 1, 3), np.float32(0.5)], {}, IMAGE),
    ("Pad", [ints(0, 0, -1, 1, 0, 0, 0, -2)], {}, IMAGE),
    ("Pad", [ints(0, 0, 2, 1, 0, 0, 1, 1)], {"mode": "reflect"}, IMAGE),
    ("Pad", [ints(0, 0, 2, 1, 0, 0, 1, 1)], {"mode": "edge"}, IMAGE),
    ("Pad", [ints(1, 2), None, ints(3)], {}, IMAGE),
    ("DepthToSpace", [], {"blocksize": 2}, IMAGE),
    ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}, IMAGE),
    ("SpaceToDepth", [], {"blocksize": 2}, IMAGE),
    ("ReduceMean", [ints(2, 3)], {}, IMAGE),
    ("ReduceMean", [ints(-1)], {"keepdims": 0}, IMAGE),
    ("ReduceSum", [ints(1)], {}, IMAGE),
    ("ReduceMax", [ints(1)], {}, IMAGE),
    ("ReduceMin", [ints(1)], {}, IMAGE),
    ("ReduceL1", [ints(1)], {}, IMAGE),
    ("ReduceL2", [ints(1)], {}, IMAGE),
    ("ReduceSumSquare", [ints(1)], {}, IMAGE),
    ("Resize", [None, None, ints(2, 4, 12, 16)], {"mode": "nearest"}, IMAGE),
    (
        "Resize",
        [None, np.float32([1, 1, 2, 2])],
        {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        },
        IMAGE,
    ),
    ("Resize", [None, np.float32([1, 1, 1.5, 0.5])], {"mode": "linear"}, IMAGE),
    (
        "Resize",
        [None, np.float32([1, 1, 2, 2])],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        IMAGE,
    ),
    ("Resize", [None, np.float32([1, 1, 2, 2])], {"mode": "cubic"}, IMAGE),
]


def one_node(path, op, constants, attributes, sample, opset=20, batch="N"):
    """A file of one operator."""
    names = ["" if c is None else f"c{index}" for index, c in enumerate(constants)]
    node = helper.make_node(op, ["x", *names], ["y"], name="n", **attributes)
    given = {n: c for n, c in zip(names, constants, strict=True) if n}
    return write(path, [node], {"x": ("float32", [batch, *sample])}, constants=given, opset=opset)


@pytest.mark.parametrize(
    ("op", "constants", "attributes", "sample"),
    [*LAYERS, *POINTWISE, *MOVEMENT],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_operator_is_what_onnx_runtime_makes_of_it(tmp_path, op, constants, attributes, sample):
    """Same values on an input that the import itself has not seen, and for a batch of 2."""
    # An operand of batch 2 fixes the batch.
    fixed = op == "Concat" or (op == "Resize" and constants[-1].dtype == np.int64)
    path = one_node(
        tmp_path / "one.onnx", op, constants, attributes, sample, batch=2 if fixed else "N"
    )
    x = torch.randn(2, *sample, generator=torch.Generator().manual_seed(7))

    imported = from_onnx(path)
    with torch.no_grad():
        got = imported(x).numpy()

    assert error(ort(path, x)[0], got) <= 1e-4


OLD = [
    ("Softmax", [], {"axis": 1}, IMAGE, 11),
    ("Clip", [], {"min": -0.5, "max": 0.5}, IMAGE, 9),
    ("Squeeze", [], {"axes": [1]}, (1, 5), 11),
    ("Unsqueeze", [], {"axes": [1]}, (5,), 11),
    ("Pad", [], {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 1.0}, IMAGE, 9),
    ("Slice", [], {"starts": [1], "ends": [3], "axes": [1]}, IMAGE, 9),
    ("Split", [], {"axis": 1, "split": [4]}, IMAGE, 11),
    ("ReduceSum", [], {"axes": [1], "keepdims": 0}, IMAGE, 11),
    ("Dropout", [], {"ratio": 0.3}, IMAGE, 9),
    ("Upsample", [np.float32([1, 1, 2, 3])], {"mode": "nearest"}, IMAGE, 9),
]


@pytest.mark.parametrize(
    ("op", "constants", "attributes", "sample", "opset"),
    OLD,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_older_opsets_keep_their_own_meaning(tmp_path, op, constants, attributes, sample, opset):
    """Axes and bounds as attributes, Softmax over all axes from one on."""
    path = one_node(tmp_path / "old.onnx", op, constants, attributes, sample, opset=opset)
    x = torch.randn(2, *sample, generator=torch.Generator().manual_seed(7))

    with torch.no_grad():
        got = from_onnx(path)(x).numpy()

    assert error(ort(path, x)[0], got) <= 1e-4


REFUSED = [
    (
        "Resize",
        [None, np.float32([1, 1, 2, 2])],
        {"mode": "nearest", "nearest_mode": "ceil"},
        IMAGE,
    ),
    ("AveragePool", [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, IMAGE),
    ("CumSum", [np.int64(1)], {}, IMAGE),
]


@pytest.mark.parametrize(
    ("op", "constants", "attributes", "sample"),
    REFUSED,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_understood_is_named(tmp_path, op, constants, attributes, sample):
    """Operator, node and opset stand in the error; nothing is guessed."""
    path = one_node(tmp_path / "odd.onnx", op, constants, attributes, sample)

    with pytest.raises(ModelNotSupported, match=rf"{op} 'n' \(opset 20\): expected .*, got "):
        from_onnx(path)


def test_the_table_covers_what_classifiers_are_made_of():
    """Every operator of the tests above is in the table, and many more."""
    tried = {case[0] for case in (*LAYERS, *POINTWISE, *MOVEMENT, *OLD)}

    assert tried <= set(known_operators())
    assert len(tried) > 75


def test_arithmetic_on_shapes_stays_symbolic(tmp_path):
    """Shape, Gather, Mul, Concat, Reshape, as exporters spell a flatten, for any batch."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Slice", ["shape", "one", "three"], ["some"]),
        helper.make_node("ReduceProd", ["some"], ["product"], keepdims=1),
        helper.make_node("Unsqueeze", ["batch", "zero_"], ["batch_"]),
        helper.make_node("Cast", ["batch_"], ["batch_float"], to=1),
        helper.make_node("Cast", ["batch_float"], ["batch_again"], to=7),
        helper.make_node("Concat", ["batch_again", "product", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {
        "zero": np.int64(0),
        "zero_": ints(0),
        "one": ints(1),
        "three": ints(3),
        "minus": ints(-1),
    }
    path = write(
        tmp_path / "s.onnx", nodes, {"x": ("float32", ["N", 2, 3, 4])}, constants=constants
    )

    imported = from_onnx(path)

    for batch in (1, 2, 5):
        assert imported(torch.randn(batch, 2, 3, 4)).shape == (batch, 6, 4)


def test_token_ids_look_up_an_embedding(tmp_path):
    """Gather by an input is an embedding; ids of the example bound the ids that are tried."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axis"], ["y"], keepdims=0),
    ]
    path = write(
        tmp_path / "e.onnx",
        nodes,
        {"ids": ("int64", ["N", 5])},
        constants={"table": w(7, 3), "axis": ints(1)},
    )
    ids = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]])

    imported = from_onnx(path, ids)

    assert error(ort(path, ids)[0], imported(ids).detach().numpy()) <= 1e-4
