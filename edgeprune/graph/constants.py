"""Tables that forward makes out of nothing: identities, kernels, frequencies, position encodings.

A layer that adds the identity to a learned matrix (T-Nets of point clouds, RepVGG fused while it
runs), or multiplies by frequencies (sines of positions and times), has rows and columns that are
channels. In the graph these are made by operators with fixed sizes and numbers (`eye(8)`, `k =
zeros(8, 8, 3, 3); k[j, j, 1, 1] = 1`, `arange(8) / 8`), which cannot lose a row. They depend on no
input and on no weight, so they are computed once and become tables of the module, which can.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import torch
from torch import fx
from torch._ops import OpOverload

from edgeprune.graph.aliases import storages, written
from edgeprune.graph.module import attribute
from edgeprune.graph.precision import LOW

aten = torch.ops.aten

Constant: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...]"

# In elements: 4 MiB of float32. A table is written into every file of the model.
_LARGEST = 2**20
# However large the parameters are: what one constant may have, and all of a model while they are
# computed (256 MiB of float32).
_LARGEST_EVER, _COMPUTED = 2**24, 2**26
# Of all tables together that are neither identities nor were written into: masks are among them.
_ALL = 2**20
# Values with a place of their own for every row.
_IDENTITIES = (aten.eye.default, aten.eye.m, aten.one_hot.default)
# What these make has the sizes of their first argument, and none of its values.
_SIZED_LIKE = (
    *(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default),
    *(aten.empty_like.default, aten.new_zeros.default, aten.new_ones.default),
    *(aten.new_full.default, aten.new_empty.default),
)


def hold_constants_(module: fx.GraphModule) -> tuple[str, ...]:
    """Make what is computed of nothing tables of the module (in place); their names.

    Only floating values that are finite and not everywhere the same: a fill has rules of its own.
    What would make the files large stays as it is: identities and values that were written into
    above 2**20 elements and the largest parameter, others above 2**20 elements in all. Each call
    gets a copy: forward may write into what it made, and must find it fresh the next time.
    """
    found = _Constants(module, storages(module.graph), _largest(module))
    for node in module.graph.nodes:
        found.meet(node)
    names = []
    for made, reader in found.tables().items():
        name = f"{made.name}_table"
        while hasattr(module, name):  # a tensor of the user's
            name += "_"
        names.append(name)
        value = cast(torch.Tensor, found.values[made])
        module.register_buffer(name, value.clone().contiguous(), persistent=False)
        with module.graph.inserting_before(reader):
            table = module.graph.create_node("get_attr", name)
            fresh = module.graph.call_function(aten.clone.default, (table,))
        table.meta, fresh.meta = dict(made.meta), dict(made.meta)
        made.replace_all_uses_with(fresh, delete_user_cb=lambda user: user not in found.values)
    found.drop_unread_()
    return tuple(names)


def _largest(module: fx.GraphModule) -> int:
    found = max([_LARGEST, *(parameter.numel() for parameter in module.parameters())])
    return min(found, _LARGEST_EVER)


@dataclass(slots=True)
class _Constants:
    module: fx.GraphModule
    storage: Mapping[fx.Node, fx.Node]
    largest: int
    # What every constant node computes; writing in place shows in all that share the storage.
    values: dict[fx.Node, Constant] = field(default_factory=dict)
    # Storages of identities, of what was written into, and of what is made of them.
    own_places: set[fx.Node] = field(default_factory=set)
    # By storage: the constants that something else reads, with the first to read each.
    read: dict[fx.Node, dict[fx.Node, fx.Node]] = field(default_factory=dict)
    # Storages that something that is no constant writes into.
    late: set[fx.Node] = field(default_factory=set)
    # In elements, of all values that were computed.
    computed: int = 0

    def meet(self, node: fx.Node) -> None:
        """Take the next node of the graph: a constant is computed, any other reads constants."""
        if self._is_constant(node):
            self.values[node] = self._value(node)
            self._note_places(node)
            return
        for source in node.all_input_nodes:
            if source in self.values:
                self.read.setdefault(self.storage[source], {}).setdefault(source, node)
        self.late.update(self.storage[into] for into in written(node))

    def tables(self) -> dict[fx.Node, fx.Node]:
        """The constants to hold, each with the first node that reads it."""
        found, left = {}, _ALL
        for storage, readers in self.read.items():
            # Two parts of one storage would be two tables: writing one must show in the other.
            if storage in self.late and len(readers) > 1:
                continue
            for made, reader in readers.items():
                value = self.values[made]
                if not isinstance(value, torch.Tensor) or not _is_table(value):
                    continue
                size = 0 if storage in self.own_places else value.numel()
                if size <= left:
                    found[made] = reader
                    left -= size
        return found

    def drop_unread_(self) -> None:
        """Erase the constants that nothing reads any more, and what was written into them."""
        needed = {
            self.storage[node]
            for node in self.values
            if any(user not in self.values for user in node.users)
        }
        for node in reversed(self.values):
            if node.users or any(self.storage[into] in needed for into in written(node)):
                needed.update(self.storage[other] for other in (node, *node.all_input_nodes))
            else:
                self.module.graph.erase_node(node)

    def _is_constant(self, node: fx.Node) -> bool:
        sources = node.all_input_nodes
        known = all(s in self.values and self.storage[s] not in self.late for s in sources)
        if node.target is operator.getitem:
            return known
        if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
            return False
        if torch.Tag.nondeterministic_seeded in node.target.tags or not self._is_small(node):
            return False
        if any(self.storage[into] in self.read for into in written(node)):
            return False
        return known or self._is_sized_like_attribute(node) or self._is_literal(node)

    def _is_small(self, node: fx.Node) -> bool:
        """Whether it gives tensors whose sizes are numbers, not too large, and not rounded.

        What is in half precision is left to the graph: a table could not be told from its rounding
        where models are compared in float64. A cast to it reads a table in float32.
        """
        value = node.meta.get("val")
        parts = value if isinstance(value, list | tuple) else [value]
        if self.computed > _COMPUTED:
            return False
        for part in parts:
            if not isinstance(part, torch.Tensor) or part.dtype in LOW:
                return False
            sizes: list[object] = list(part.shape)
            numbers = [size for size in sizes if isinstance(size, int)]
            if len(numbers) < len(sizes) or math.prod(numbers) > self.largest:
                return False
        return True

    def _is_sized_like_attribute(self, node: fx.Node) -> bool:
        return node.target in _SIZED_LIKE and [s.op for s in node.all_input_nodes] == ["get_attr"]

    def _is_literal(self, node: fx.Node) -> bool:
        """Whether it is a number or list of the code, which tracing lifted out of it."""
        sources = node.all_input_nodes
        return (
            node.target is aten.lift_fresh_copy.default
            and sources[0].op == "get_attr"
            and not isinstance(attribute(self.module, str(sources[0].target)), torch.nn.Parameter)
        )

    def _value(self, node: fx.Node) -> Constant:
        def real(source: fx.Node) -> Constant:
            if source in self.values:
                return self.values[source]
            return cast(torch.Tensor, attribute(self.module, str(source.target)))

        args, kwargs = fx.map_arg((node.args, node.kwargs), real)
        with torch.no_grad():
            value: Constant = node.target(*args, **kwargs)  # type: ignore[operator]
        parts = [value] if isinstance(value, torch.Tensor) else value
        self.computed += sum(part.numel() for part in parts)
        return value

    def _note_places(self, node: fx.Node) -> None:
        made_of = {self.storage[source] for source in node.all_input_nodes}
        if node.target in _IDENTITIES or written(node) or made_of & self.own_places:
            self.own_places.add(self.storage[node])
        self.own_places.update(self.storage[into] for into in written(node))


def _is_table(value: torch.Tensor) -> bool:
    return (
        value.is_floating_point()
        and value.dim() > 0
        and bool(value.isfinite().all())
        and bool((value != value.flatten()[:1]).any())
    )
