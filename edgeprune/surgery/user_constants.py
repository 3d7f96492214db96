"""Which floats of the user's class are which constants of the graph: found by changing both.

An eps is far too small to show in outputs, and its value proves nothing: a dropout rate or a
tolerance may be equal. So the attribute and the constants that it is taken for are made large, in
the class and in the graph. Where both then compute the same, the attribute is read there and
nowhere else.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from edgeprune.graph.inputs import Inputs, clone
from edgeprune.graph.module import CapturedModule
from edgeprune.graph.outputs import only_known
from edgeprune.graph.precision import in_float64, inputs_in_float64, is_low
from edgeprune.graph.provenance import module_path
from edgeprune.recipe.trial import same_buffers
from edgeprune.surgery.deviation import deviation
from edgeprune.surgery.tagged import Place
from edgeprune.surgery.user_trace import floats, share

aten = torch.ops.aten

Outputs = tuple[object, ...]

# Standard deviations of the output: what a change must move it by to be heard, and what class and
# graph may differ by when both are changed.
_HEARD, _ALIKE = 1e-2, 1e-3
# About what they are made: as large as what an eps is added to, and larger than any width's norm,
# which a limit from below (`normalize`) would else never show.
_SIZES = (1.0, 100.0)
# Attributes tried one by one.
_MOST_TRIES = 32


def owners(
    model: nn.Module, dense: CapturedModule, nodes: Sequence[str], inputs: Inputs
) -> dict[str, Place]:
    """The attribute of `model` that each of `nodes` of its graph `dense` reads as its constant.

    The nodes are additions of a number and RMSNorms. One whose constant is no attribute, or one
    that anything else reads too, is left out. Neither `model` nor `dense` is changed.
    """
    by_name = {node.name: node for node in dense.graph.nodes}
    places = {name: list(_candidates(model, by_name[name])) for name in nodes if name in by_name}
    nearest = {name: found[0] for name, found in places.items() if found}
    if not nearest:
        return {}
    trial = _Trial(model, dense, inputs)
    if trial.agrees(nearest):
        return nearest
    result: dict[str, Place] = {}
    for place in list(dict.fromkeys(p for found in places.values() for p in found))[:_MOST_TRIES]:
        readers = {n: place for n, found in places.items() if place in found and n not in result}
        if readers and trial.agrees(readers):
            result |= readers
    return result


def position(node: fx.Node) -> int:
    """Which argument of a node is its constant."""
    return 3 if node.target is aten.rms_norm.default else 1


def put(model: nn.Module, values: Mapping[Place, float]) -> dict[Place, float | None]:
    """Write floats where they belong (in place); what stood there."""
    held = {place: (container, name) for place, container, name in floats(model)}
    before: dict[Place, float | None] = {}
    for place, value in values.items():
        # A norm of torch that was given no eps has None there.
        container, name = held.get(place, (vars(model.get_submodule(place.module)), "eps"))
        old = container[name]
        before[place] = old if isinstance(old, float) else None
        container[name] = value
    return before


def _candidates(model: nn.Module, node: fx.Node) -> Iterator[Place]:
    """Attributes of the node's number, of the module that it is of first, then of those around."""
    path, number = module_path(node), node.args[position(node)]
    module = model.get_submodule(path)
    if type(module).forward is nn.RMSNorm.forward and module.eps is None:
        yield Place(path, "eps")
    held = [(place, container[name]) for place, container, name in floats(model)]
    while True:
        yield from (place for place, own in held if place.module == path and own == number)
        if not path:
            return
        path = path.rpartition(".")[0]


class _Trial:
    """Class and graph, run with other constants."""

    def __init__(self, model: nn.Module, dense: CapturedModule, inputs: Inputs) -> None:
        low = is_low(model)
        self.inputs = inputs_in_float64(inputs) if low else inputs
        self.model = in_float64(model) if low else model
        self.dense = in_float64(dense) if low else dense
        self.plain = self._run(self.dense)

    def agrees(self, readers: Mapping[str, Place]) -> bool:
        """Whether both compute the same with these changed, and something else than before."""
        numbered = enumerate(dict.fromkeys(readers.values()))
        # Another number for each, so that no two can be taken for one another.
        shares = {place: 0.5 + (0.618 * (index + 1)) % 1.0 for index, place in numbered}
        return all(
            self._agrees(readers, {place: size * share for place, share in shares.items()})
            for size in _SIZES
        )

    def _agrees(self, readers: Mapping[str, Place], values: Mapping[Place, float]) -> bool:
        graph = _copied(self.dense)
        for node in graph.graph.nodes:
            if node.name in readers:
                node.update_arg(position(node), values[readers[node.name]])
        graph.recompile()
        small = share(self.model).eval()
        put(small, values)
        expected = self._run(graph)
        with contextlib.suppress(Exception):  # whatever the class makes of such a number
            got = self._run(small)
            return deviation(expected, self.plain) > _HEARD and deviation(got, expected) <= _ALIKE
        return False

    def _run(self, model: nn.Module) -> Outputs:
        copies = clone(self.inputs)
        with torch.no_grad(), same_buffers(model):
            result = model(*copies.args, **copies.kwargs)
        return tuple(pytree.tree_leaves(only_known(result)))


def _copied(graph: CapturedModule) -> CapturedModule:
    """Another graph of the same tensors."""
    tensors = (*graph.parameters(), *graph.buffers())
    return copy.deepcopy(graph, {id(tensor): tensor for tensor in tensors})
