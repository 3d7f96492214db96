"""How far two sets of outputs are apart, and where two graphs first differ."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.inputs import Inputs, clone
from edgeprune.graph.labels import Value
from edgeprune.graph.module import flat_inputs
from edgeprune.surgery.silence import Silencer
from edgeprune.surgery.survivors import Survivors


def deviation(outputs: tuple[object, ...], reference: tuple[object, ...]) -> float:
    """max |a - b| / standard deviation of b, worst output; inf where shape or finiteness differ.

    Integer and boolean outputs must be equal: unequal elements are counted. An output that does
    not vary must be equal; one of a single number is measured by its size.
    """
    if len(outputs) != len(reference):
        return math.inf
    return max((_one(a, b) for a, b in zip(outputs, reference, strict=True)), default=0.0)


def _one(got: object, want: object) -> float:
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        return 0.0 if got == want else math.inf
    if got.shape != want.shape:
        return math.inf
    if torch.equal(got, want.to(got.dtype)):
        return 0.0
    if not want.is_floating_point():
        return float((got != want).sum())
    worst = (got.double() - want.double()).abs().max().item()
    spread = want.double().std().item() if want.numel() > 1 else abs(want.double().item())
    return worst / spread if spread > 0.0 and math.isfinite(worst) else math.inf


def varies(outputs: tuple[object, ...]) -> bool:
    """Whether all floating-point outputs are finite and one of them differs between samples.

    A head with zero weights and distinct biases has a spread, yet says nothing of its input.
    """
    floats = [o for o in outputs if isinstance(o, torch.Tensor) and o.is_floating_point()]
    return all(bool(o.isfinite().all()) for o in floats) and any(
        bool((o != (o[:1] if o.dim() > 1 and len(o) > 1 else o.reshape(-1)[0])).any())
        for o in floats
        if o.numel() > 1
    )


def single_numbers_differ(outputs: tuple[object, ...], others: tuple[object, ...]) -> bool:
    """Whether all floating outputs are one finite number each, and one differs in `others`."""
    floats = [
        (one, other)
        for one, other in zip(outputs, others, strict=False)
        if isinstance(one, torch.Tensor) and one.is_floating_point()
    ]
    return all(one.numel() == 1 and bool(one.isfinite().all()) for one, _ in floats) and any(
        isinstance(other, torch.Tensor) and not torch.equal(one, other) for one, other in floats
    )


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)


def first_difference(
    analysis: Analysis,
    kept: NDArray[np.bool_],
    dense: fx.GraphModule,
    pruned: torch.nn.Module,
    inputs: Inputs,
) -> str:
    """Node and source line where the shrunk graph first leaves the silenced one."""
    if not isinstance(pruned, fx.GraphModule):
        return "the output"
    silenced = Silencer(analysis, dense, kept)  # type: ignore[arg-type]  # a CapturedModule copy
    silenced.garbage_collect_values = False
    silenced.outputs(clone(inputs))
    shrunk = _Recorder(pruned)
    copies = clone(inputs)
    with torch.no_grad():
        flat = flat_inputs(pruned, copies.args, copies.kwargs)
        shrunk.run(*flat, enable_io_processing=False)
    left = Survivors(analysis, kept)
    have = {node.name: value for node, value in shrunk.env.items()}
    for node, want in silenced.env.items():
        value = analysis.walk.values.get(node.name)
        got = have.get(node.name)
        if not isinstance(value, Value) or not isinstance(want, torch.Tensor):
            continue
        if node.op != "call_function" or any(u.meta.get("scales") for u in node.users):
            continue
        for dim, positions in left.along(value).items():
            want = want.index_select(dim, positions)
        if deviation((got,), (want,)) > 1e-3:
            return f"{node.name} ({node.target}) {node.meta.get('where', '')}".strip()
    return "the output"
