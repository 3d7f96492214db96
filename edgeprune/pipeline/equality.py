"""The last proof: the plan as a whole, replayed on the dense model, and the delivered model."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from edgeprune.errors import ProofFailed
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.inputs import Inputs, clone, vary
from edgeprune.graph.module import CapturedModule
from edgeprune.planning.plan import Plan
from edgeprune.surgery.deviation import deviation
from edgeprune.surgery.prove import TOLERANCE_FLOAT32, Proof, prove
from edgeprune.surgery.shrink import shrink


def prove_whole(dense: Analysis, plan: Plan, delivered: CapturedModule, *, seed: int) -> Proof:
    """Prove the composed plan on the dense model, and that it leads to `delivered`.

    The replayed model has the delivered one's tensors, name by name and size by size, and with
    the delivered weights it computes the same: they differ by training alone.
    Raises ProofFailed where that does not hold.
    """
    replayed = shrink(dense, plan)
    proof = prove(dense, plan, replayed, seed=seed).require()
    require_same_model(dense, replayed, delivered, seed=seed)
    return proof


def require_same_model(
    dense: Analysis, replayed: CapturedModule, delivered: CapturedModule, *, seed: int
) -> None:
    """Same tensors by name and shape; same outputs with the same weights, or ProofFailed."""
    ours, theirs = _shapes(replayed), _shapes(delivered)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ProofFailed(
                f"proof of the whole plan at {name}: expected the delivered shape "
                f"{theirs.get(name)} when replayed on the dense model, got {ours.get(name)}. This "
                f"is a bug of edgeprune; report the model. Nothing was delivered.",
                where=name,
            )
    replayed.load_state_dict(delivered.state_dict())
    inputs = vary(dense.captured.inputs, seed)
    error = deviation(_outputs(replayed, inputs), _outputs(delivered, inputs))
    if not error <= TOLERANCE_FLOAT32:
        raise ProofFailed(
            f"proof of the whole plan at the output: expected the delivered model within "
            f"{TOLERANCE_FLOAT32:g} when replayed on the dense model with its weights, got "
            f"{error:.3g}. This is a bug of edgeprune; report the model. Nothing was delivered.",
            where="output",
        )


def _shapes(module: CapturedModule) -> dict[str, tuple[int, ...]]:
    tensors = {**dict(module.named_buffers()), **module.state_dict()}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _outputs(module: CapturedModule, inputs: Inputs) -> tuple[object, ...]:
    copies = clone(inputs)
    with torch.no_grad():
        result = module.eval()(*copies.args, **copies.kwargs)
    return tuple(pytree.tree_leaves(result))
