"""Two graphs run side by side, piece by piece, over many portions of samples.

To fit a reader, its inputs must come from layers that are repaired already. Running the model
anew for every reader would cost the square of its depth, holding every value of every sample too
much memory. So each portion stands at a place in the graph with the values that are still needed
there, and is moved on; where all portions together would hold more than the bound, they stay at
the last place that is narrow enough, and the way from there is run again for the next reader.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from edgeprune.graph.inputs import Inputs, map_tensors
from edgeprune.graph.module import CapturedModule, flat_inputs
from edgeprune.surgery.repair_samples import Portion


class GraphRunner(fx.Interpreter):
    """Runs any stretch of a graph's nodes on a set of values, and forgets what is not needed."""

    def __init__(self, module: CapturedModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._module = module
        self.order = list(module.graph.nodes)
        self.places = {node.name: place for place, node in enumerate(self.order)}
        self._dying: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        last: dict[fx.Node, fx.Node] = {}
        for node in self.order:
            for source in node.all_input_nodes:
                last[source] = node
        for source, node in last.items():
            if source.op != "get_attr":
                self._dying[node].append(source)
        self._device = _device(module)

    def begin(self, inputs: Inputs) -> dict[fx.Node, object]:
        """The values before the first node: the inputs, on the model's device."""
        moved = map_tensors(inputs, lambda tensor: tensor.to(self._device))
        leaves = flat_inputs(self._module, moved.args, moved.kwargs)
        holders = [node for node in self.order if node.op == "placeholder"]
        return dict(zip(holders, leaves, strict=True))

    def go(self, values: dict[fx.Node, object], start: int, stop: int) -> None:
        """Run nodes number start to stop - 1 (`values` is changed)."""
        self.env = values
        for node in self.order[start:stop]:
            if node.op != "placeholder":
                values[node] = self.run_node(node)
            for source in self._dying.get(node, ()):
                del values[source]
            if not node.users:
                values.pop(node, None)

    def copied(self, values: dict[fx.Node, object], start: int, stop: int) -> dict[fx.Node, object]:
        """Values that a run over the stretch may change, without changing these.

        Copies only where the stretch writes in place; views of one storage stay views of one.
        """
        if not any(_writes(node) for node in self.order[start:stop]):
            return dict(values)
        memo: dict[int, object] = {}
        for node, value in values.items():
            if node.op == "get_attr":
                memo[id(value)] = value
        return {node: copy.deepcopy(value, memo) for node, value in values.items()}


@dataclass(slots=True)
class _Standing:
    """One portion: the values of both graphs at the place where they stand."""

    count: int
    dense: dict[fx.Node, object]
    small: dict[fx.Node, object]


class SideBySide:
    """The dense and the shrunk graph over portions of samples, with a bound on memory.

    The values that all portions hold together stay below `bound_bytes`, besides the samples
    themselves and the values of the one portion that is being run.
    """

    def __init__(
        self,
        dense: CapturedModule,
        small: CapturedModule,
        portions: tuple[Portion, ...],
        bound_bytes: int,
    ) -> None:
        self._dense = GraphRunner(dense)
        self._small = GraphRunner(small)
        self._bound_bytes = bound_bytes
        self._places = (0, 0)
        self._moves = False
        self._target = (0, 0)
        self._waiting = [
            _Standing(p.count, self._dense.begin(p.inputs), self._small.begin(p.inputs))
            for p in portions
        ]
        self._samples = sum(portion.count for portion in portions)

    def __len__(self) -> int:
        """Number of portions."""
        return len(self._waiting)

    def approach(self, reader: str, reached: str) -> None:
        """From now on `at` runs the shrunk graph up to the reader, the dense one past `reached`."""
        if self._moves:
            self._places = self._target
        self._moves = False
        self._target = (self._dense.places[reached] + 1, self._small.places[reader])

    def at(self, index: int) -> tuple[torch.Tensor, dict[fx.Node, object]]:
        """Of portion `index`, the dense value of `reached` and the shrunk values at the reader.

        Every portion is to be asked for once, in order, before the next `approach`.
        """
        standing = self._waiting[index]
        dense, small = standing.dense, standing.small
        # The samples themselves are shared by both graphs: nothing may write into them.
        if index == 0 or not self._moves or self._places == (0, 0):
            dense = self._dense.copied(dense, self._places[0], self._target[0])
            small = self._small.copied(small, self._places[1], self._target[1])
        self._dense.go(dense, self._places[0], self._target[0])
        self._small.go(small, self._places[1], self._target[1])
        if index == 0:
            held = _size_bytes(dense) + _size_bytes(small)
            self._moves = held * self._samples <= self._bound_bytes * standing.count
        if self._moves:
            standing.dense, standing.small = dense, small
        value = dense[self._dense.order[self._target[0] - 1]]
        if not isinstance(value, torch.Tensor):
            raise TypeError("a reader gives one tensor")
        return value, small


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _size_bytes(values: dict[fx.Node, object]) -> int:
    """Bytes of all storages behind the values; views of one count once, the model's not."""
    sizes: dict[int, int] = {}
    for node, value in values.items():
        if node.op == "get_attr":
            continue
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _device(module: CapturedModule) -> torch.device:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
