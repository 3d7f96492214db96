"""Values of the captured dense graph, to be recognised when the user's own class computes them.

Both run the same kernels on the same inputs, in the same order, so a tensor of the user's code is
the node of the graph that has its shape and its numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeprune.graph.inputs import Inputs, clone
from edgeprune.graph.labels import Value
from edgeprune.graph.module import CapturedModule, flat_inputs
from edgeprune.surgery.survivors import Survivors

Numbers: TypeAlias = NDArray[np.float64]

# So many numbers of a tensor are looked at: enough to tell two values apart.
_LOOKED_AT = 48
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """One tensor that a node gave: its place in the order, shape after surgery, some numbers."""

    order: int
    node: str
    where: str
    after: tuple[int, ...]
    numbers: Numbers


@dataclass(slots=True)
class Sightings:
    """All of them, by shape and dtype. `find` goes forward with the user's code."""

    _by_kind: dict[tuple[tuple[int, ...], torch.dtype], list[Sighting]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _reached: int = 0

    def add(self, value: torch.Tensor, sighting: Sighting) -> None:
        """Remember a value; in graph order."""
        self._by_kind[tuple(value.shape), value.dtype].append(sighting)

    def find(self, value: torch.Tensor, where: str) -> Sighting | None:
        """The node that gave `value`: the next one of that line, the next, or the last before."""
        known = self._by_kind.get((tuple(value.shape), value.dtype), [])
        if not known or not _is_readable(value):
            return None
        numbers = some_numbers(value)
        first = bisect_left([sighting.order for sighting in known], self._reached)
        ahead = [s for s in known[first:] if _alike(s.numbers, numbers)]
        of_the_line = [s for s in ahead if s.where == where]
        behind = (s for s in reversed(known[:first]) if _alike(s.numbers, numbers))
        found = next(iter(of_the_line or ahead), None) or next(behind, None)
        if found is not None:
            self._reached = max(self._reached, found.order)
        return found


class _Recorder(fx.Interpreter):
    def __init__(self, module: CapturedModule, left: Survivors | None) -> None:
        super().__init__(module)
        self.left = left
        self.sightings = Sightings()
        self.order = 0

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        self.order += 1
        if n.op == "call_function":
            parts = result if isinstance(result, tuple | list) else (result,)
            for value, after in zip(parts, self._after(n, parts), strict=False):
                readable = isinstance(value, torch.Tensor) and _is_readable(value)
                if readable and after is not None:
                    where = str(n.meta.get("where", ""))
                    numbers = some_numbers(value)
                    self.sightings.add(value, Sighting(self.order, n.name, where, after, numbers))
        return result

    def _after(self, node: fx.Node, parts: Sequence[object]) -> list[tuple[int, ...] | None]:
        if self.left is None:
            return [tuple(p.shape) if isinstance(p, torch.Tensor) else None for p in parts]
        if not node.users:
            # What nobody reads, as the joint state of directions that were taken apart.
            return [None] * len(parts)
        labelled = self.left.analysis.walk.values.get(node.name)
        members = labelled if isinstance(labelled, tuple) else (labelled,)
        return [self.left.shape(m) if isinstance(m, Value) else None for m in members]


def watch_graph(
    module: CapturedModule, inputs: Inputs, left: Survivors | None = None
) -> tuple[Sightings, tuple[object, ...]]:
    """Run a graph once; what every node gave, and the flat outputs.

    `left` tells the shapes after surgery of a dense graph; a shrunk one has them.
    """
    recorder = _Recorder(module, left)
    copies = clone(inputs)
    with torch.no_grad():
        flat = flat_inputs(module, copies.args, copies.kwargs)
        outputs = recorder.run(*flat, enable_io_processing=False)
    return recorder.sightings, tuple(outputs)


def _is_readable(value: torch.Tensor) -> bool:
    """Whether a tensor has numbers of its own: none inside of vmap has."""
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)


def some_numbers(value: torch.Tensor) -> Numbers:
    """Numbers of a tensor, spread evenly over it: float64, at most 48."""
    count = value.numel()
    if count == 0:
        return np.zeros(0)
    spread = np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(np.int64))
    index = np.unravel_index(spread, tuple(value.shape)) if value.dim() else ()
    picked = value.detach()[tuple(torch.from_numpy(i).to(value.device) for i in index)]
    numbers = torch.view_as_real(picked).sum(-1) if picked.is_complex() else picked
    return np.atleast_1d(numbers.double().cpu().numpy())


def _alike(one: Numbers, two: Numbers) -> bool:
    size = float(np.nanmax(np.abs(one), initial=0.0, where=np.isfinite(one)))
    return np.allclose(one, two, rtol=_TOLERANCE, atol=_TOLERANCE * size * 0.1, equal_nan=True)
