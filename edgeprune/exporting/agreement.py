"""Whether an exported file computes what the model computes: exporters have been wrong before.

A coarse check on one input, so that no file is ever written that is plainly another function
(pytorch issue 169178: ResNet-18 at 0 %). The verdict on real inputs is the parity gate's.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import torch
from torch.utils import _pytree as pytree

from edgeprune.errors import ModelNotSupported
from edgeprune.graph.capture import Captured
from edgeprune.graph.inputs import Inputs, clone, vary
from edgeprune.graph.precision import in_float64, inputs_in_float64
from edgeprune.recipe.data import Array, to_numpy

TOLERANCE = 1e-2
"""Largest difference in units of the output's standard deviation: an order above float noise."""

# Rounding of one order of operations is so near that of another.
_MAGNIFIED = 10.0


def torch_outputs(module: torch.nn.Module, inputs: Inputs) -> tuple[Array, ...]:
    """The tensors that `module` returns, in order, as arrays."""
    copies = clone(inputs)
    with torch.no_grad():
        result = module(*copies.args, **copies.kwargs)
    leaves = pytree.tree_leaves(result)
    return tuple(to_numpy(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))


def feeds(session: ort.InferenceSession, inputs: Inputs) -> dict[str, Array]:
    """The tensors of a call under the names of the session's inputs, which are in call order."""
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    arrays = [to_numpy(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
    names = [node.name for node in session.get_inputs()]
    return dict(zip(names, arrays, strict=True))


def relative_error(expected: Array, got: Array) -> float:
    """max |a - b| / standard deviation of a; by the largest |a| where a does not vary."""
    if expected.shape != got.shape:
        return float("inf")
    if expected.size == 0 or np.array_equal(expected, got):
        return 0.0
    a, b = expected.astype(np.float64), got.astype(np.float64)
    difference = np.where(a == b, 0.0, np.abs(a - b))  # infinities that agree do not differ
    return float(difference.max() / (a.std() or np.abs(a).max() or 1.0))


def require_agreement(session: ort.InferenceSession, captured: Captured, name: str) -> None:
    """Raise ModelNotSupported if file and captured graph differ on the example or a variation."""
    for inputs in (captured.inputs, vary(captured.inputs, seed=3)):
        expected = torch_outputs(captured.module, inputs)
        got = session.run(None, feeds(session, inputs))
        for node, a, b in zip(session.get_outputs(), expected, got, strict=True):
            error = relative_error(a, b)
            if not error <= TOLERANCE:
                raise ModelNotSupported(
                    f"checking the export at output {node.name} of {name}: expected torch's "
                    f"values within {TOLERANCE:g} of their standard deviation, got an error of "
                    f"{error:.3g}. {_blame(captured, inputs, error)}",
                    where=node.name,
                )


def _blame(captured: Captured, inputs: Inputs, error: float) -> str:
    """Whose fault a difference is: a network that magnifies rounding has no one answer."""
    narrow = torch_outputs(captured.module, inputs)
    try:
        wide = torch_outputs(in_float64(captured.module), inputs_in_float64(inputs))
        rounding = max(relative_error(a, b) for a, b in zip(wide, narrow, strict=True))
    except (RuntimeError, ValueError):
        rounding = 0.0  # it does not run in float64
    if rounding * _MAGNIFIED < error:
        return "This is a fault of the exporter: report it with the model."
    return (
        f"torch's own float32 is {rounding:.3g} away from float64 there: the network magnifies "
        "rounding until its outputs mean nothing. Are its weights trained?"
    )
