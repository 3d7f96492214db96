"""What survives of a value: kept positions along each dim, from the labels that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.errors import InternalError, PlanError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.groups import SlotTable
from edgeprune.graph.labels import Identity, Value, identity, varying
from edgeprune.graph.propagate import Labelled
from edgeprune.planning.plan import Plan


@dataclass(frozen=True, slots=True, eq=False)
class Survivors:
    """The labels that stay (`kept`, boolean (labels,)), and what that leaves of each value."""

    analysis: Analysis
    kept: NDArray[np.bool_]
    # Most values of a graph pass on the layers of another: each set of layers is looked at once.
    _found: dict[tuple[Identity, ...], dict[int, torch.Tensor]] = field(default_factory=dict)

    def along(self, value: Value) -> dict[int, torch.Tensor]:
        """Kept positions (sorted int64) of every dim that loses some; not to be changed."""
        key = tuple(identity(layer) for layer in value.layers)
        # Layers of the walk live as long as the analysis, so their identity is theirs alone.
        if key not in self._found:
            self._found[key] = self._along(value)
        return self._found[key]

    def _along(self, value: Value) -> dict[int, torch.Tensor]:
        masks: dict[int, NDArray[np.bool_]] = {}
        for layer in value.layers:
            stays = self.kept[layer.numpy()]
            if stays.all():
                continue
            for dim, mask in self._sides(layer, stays).items():
                masks[dim] = masks[dim] & mask if dim in masks else mask
        return {
            dim: torch.from_numpy(np.flatnonzero(mask))
            for dim, mask in masks.items()
            if not mask.all()
        }

    def _sides(self, layer: torch.Tensor, stays: NDArray[np.bool_]) -> dict[int, NDArray[np.bool_]]:
        """A kept box as one mask a side."""
        dims = varying(layer)
        if len(dims) == 1:
            return {dims[0]: stays.reshape(-1)}
        sides = {}
        product = np.ones([1] * stays.ndim, dtype=bool)
        for dim in dims:
            others = tuple(d for d in range(stays.ndim) if d != dim)
            side: NDArray[np.bool_] = np.asarray(stays.any(axis=others))
            sides[dim] = side
            product = product & side.reshape([-1 if d == dim else 1 for d in range(stays.ndim)])
        if not np.array_equal(product & np.ones_like(stays), stays):
            raise InternalError(
                f"surgery: expected a rectangular remainder of a value of shape "
                f"{tuple(layer.shape)}, got a ragged one. The labels of this value were not "
                "settled; report the model."
            )
        return sides

    def shape(self, value: Value) -> tuple[int, ...]:
        """Shape of the value after surgery."""
        along = self.along(value)
        return tuple(len(along[d]) if d in along else n for d, n in enumerate(value.shape))

    def changes(self, value: Labelled) -> bool:
        """Whether any dim of the value, or of a member of it, loses positions."""
        if isinstance(value, Value):
            return bool(self.along(value))
        return isinstance(value, tuple) and any(self.changes(member) for member in value)


def survivors(analysis: Analysis, plan: Plan) -> Survivors:
    """What `plan` leaves of the analysed model.

    Raises `PlanError` when the plan names other tensors or sizes, removes part of a unit, or
    something pinned.
    """
    return Survivors(analysis, analysis.kept_labels(removed_units(analysis, plan)))


def removed_units(analysis: Analysis, plan: Plan) -> dict[str, NDArray[np.bool_]]:
    """Per group, boolean (units,), True = goes, read off the plan's axes."""
    found = whole_units(analysis, plan)
    if found.problem is not None:
        raise found.problem
    return found.removed


@dataclass(frozen=True, slots=True, eq=False)
class WholeUnits:
    """What of a plan is whole units of a model: per group boolean (units,), True = goes.

    `rest` marks the positions beyond them, by (parameter, dim); `problem` says what is wrong with
    these as units of this model, None where there are none.
    """

    removed: dict[str, NDArray[np.bool_]]
    rest: Mapping[tuple[str, int], NDArray[np.bool_]]
    problem: PlanError | None


def whole_units(analysis: Analysis, plan: Plan) -> WholeUnits:
    """Sort what `plan` removes into whole units and the rest."""
    gone: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for axis in plan.axes:
        mask = np.ones(axis.size, dtype=bool)
        mask[list(axis.keep)] = False
        gone[(axis.parameter, axis.dim)] = mask
    left = {key: mask.copy() for key, mask in gone.items()}
    removed = {}
    problem: PlanError | None = None
    for group in analysis.groups:
        marks = [_marked(table, gone) for table in group.tables]
        goes = np.logical_and.reduce([marked.all(axis=1) for marked in marks])
        for table, marked in zip(group.tables, marks, strict=True):
            if (table.parameter, table.dim) in left:
                left[(table.parameter, table.dim)][table.positions[goes].reshape(-1)] = False
            if problem is None and not np.array_equal(goes, marked.any(axis=1)):
                problem = PlanError(
                    f"plan at {table.parameter} dim {table.dim}: expected whole units of group "
                    f"{group.name}, got a part of one. Make the plan from this model's analysis.",
                    where=table.parameter,
                )
        removed[group.name] = goes
    rest = {key: mask for key, mask in left.items() if mask.any()}
    for (name, dim), mask in rest.items():
        problem = problem or PlanError(
            f"plan at {name} dim {dim}: expected removable positions, got "
            f"{np.flatnonzero(mask)[:8].tolist()}, which are pinned or not in this model. "
            "`edgeprune inspect` says what is pinned and why.",
            where=name,
        )
    return WholeUnits(removed, rest, problem)


def _marked(
    table: SlotTable, gone: Mapping[tuple[str, int], NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """Which positions of each unit the plan removes, boolean (units, positions per unit)."""
    mask = gone.get((table.parameter, table.dim))
    if mask is None:
        return np.zeros(table.positions.shape, dtype=bool)
    if len(mask) != table.size:
        raise PlanError(
            f"plan at {table.parameter} dim {table.dim}: expected {table.size} positions as in "
            f"this model, got {len(mask)}. Apply a plan to the dense model it was made for.",
            where=table.parameter,
        )
    return mask[table.positions]
