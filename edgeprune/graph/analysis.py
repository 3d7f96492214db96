"""Analyze: capture a model and find what can go, together with what, and what cannot, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.graph.capture import Captured, capture
from edgeprune.graph.fold import fold
from edgeprune.graph.groups import Group, Pin, TensorShape, Unit
from edgeprune.graph.labels import identity
from edgeprune.graph.module import first_names
from edgeprune.graph.policy import resolve
from edgeprune.graph.propagate import Walk, layers_of
from edgeprune.graph.steps import in_steps
from edgeprune.graph.units import Partition


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """What a captured model offers to remove (`groups`) and what it refuses (`pins`).

    `walk` and `partition` are the engine's view of the same: labels of every value.
    """

    captured: Captured
    walk: Walk = field(repr=False)
    partition: Partition = field(repr=False)
    exact_only: bool

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups in graph order."""
        return self.partition.groups

    @property
    def pins(self) -> tuple[Pin, ...]:
        """What may not go, with reason and source line."""
        return self.partition.pins

    @property
    def unknown(self) -> tuple[str, ...]:
        """Operators without a rule; what feeds them is pinned."""
        return self.walk.unknown

    def unit_of(self, parameter: str, dim: int, position: int) -> Unit:
        """The unit that a position of a tensor belongs to.

        Raises `UsageError` for a position that is pinned or does not exist.
        """
        for axis in self.walk.labels.axes:
            if axis.owner == parameter and axis.dim == dim and 0 <= position < axis.size:
                label = axis.first_label + position
                group = int(self.partition.group_of_label[label])
                if group >= 0:
                    return self.groups[group].unit(int(self.partition.unit_of_label[label]))
                raise UsageError(
                    f"unit_of at {parameter} dim {dim} position {position}: expected a removable "
                    f"position, got a pinned one ({self._why(parameter, dim)})."
                )
        raise UsageError(
            f"unit_of at {parameter} dim {dim} position {position}: expected a position of a "
            "labelled tensor, got none of that name and size. See analysis.groups for names."
        )

    def _why(self, parameter: str, dim: int) -> str:
        for pin in self.pins:
            if pin.parameter == parameter and pin.dim == dim:
                return f"{pin.reason} at {pin.node} {pin.where}".strip()
        return "fixed by the operator that reads it"

    @property
    def tensors(self) -> tuple[TensorShape, ...]:
        """Every tensor of the state dict, ties named."""
        names = first_names(self.captured.module)
        return tuple(
            TensorShape(
                name=name,
                shape=tuple(tensor.shape),
                same_as=None if names[id(tensor)] == name else names[id(tensor)],
            )
            for name, tensor in self.captured.module.state_dict(keep_vars=True).items()
        )

    def kept_labels(self, removed: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Boolean of shape (labels,): False for every label of a removed unit.

        `removed` maps a group's name to a boolean mask over its units, True = goes.
        """
        widest = max((group.width for group in self.groups), default=0)
        gone = np.zeros((len(self.groups) + 1, widest + 1), dtype=bool)
        for index, group in enumerate(self.groups):
            if group.name in removed:
                gone[index, : group.width] = removed[group.name]
        # Labels without a unit have group and unit -1: the last row and column, never gone.
        return ~gone[self.partition.group_of_label, self.partition.unit_of_label]

    def spare(
        self,
        removed: Mapping[str, NDArray[np.bool_]],
        scores: Mapping[str, NDArray[np.float64]],
    ) -> dict[str, NDArray[np.bool_]]:
        """The same removal with the best unit put back wherever a value would become empty.

        Groups keep a unit each, but a part of one (half of a split that only one side reads) can
        still lose everything.
        """
        result = {name: mask.copy() for name, mask in removed.items()}
        layers = {
            identity(layer): layer
            for value in self.walk.values.values()
            for layer in layers_of(value)
        }
        kept = self.kept_labels(result)
        for layer in layers.values():
            if kept[layer.numpy()].any():
                continue
            flat = np.unique(layer.numpy())
            best = max(
                flat,
                key=lambda label: scores[self._group_name(label)][
                    self.partition.unit_of_label[label]
                ],
            )
            unit = self.partition.unit_of_label[best]
            result[self._group_name(best)][unit] = False
            kept = self.kept_labels(result)
        return result

    def _group_name(self, label: int) -> str:
        return self.groups[int(self.partition.group_of_label[label])].name


def analyze(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None = None,
    *,
    dynamic_batch: bool = True,
    exact_only: bool = False,
) -> Analysis:
    """Capture `model` (never changed) and find its groups and pins.

    `args`, `kwargs` are example inputs, batch first; a batch of 1 is repeated to 2. `exact_only`
    forbids removals that redefine a LayerNorm statistic.
    Raises `ModelNotSupported` when the model cannot be captured.
    """
    return analyze_captured(
        fold(capture(model, args, kwargs, dynamic_batch=dynamic_batch)), exact_only=exact_only
    )


def analyze_captured(captured: Captured, *, exact_only: bool = False) -> Analysis:
    """`analyze` of what is captured already."""
    found, parts = resolve(captured, exact_only=exact_only)
    if found.stepwise:
        captured = in_steps(captured, found.stepwise)
        found, parts = resolve(captured, exact_only=exact_only)
    return Analysis(
        captured=captured,
        walk=found,
        partition=parts,
        exact_only=exact_only,
    )
