"""The plan: what is kept, as data that a person can read, diff, review and re-apply.

A plan is written in the coordinates of the dense model. `axes` is what surgery carries out;
`groups` says the same in units, for people. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from edgeprune.errors import PlanError, UsageError
from edgeprune.graph.groups import TensorShape
from edgeprune.planning.allocate import DEPTHWISE_MULTIPLE, Request, allocate
from edgeprune.planning.selection import Selection

if TYPE_CHECKING:
    from edgeprune.graph.analysis import Analysis
    from edgeprune.scoring.scores import Scores

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGroup:
    """Units of one group that stay: sorted indices out of `width`."""

    name: str
    kind: str
    width: int
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAxis:
    """Positions of one dim of one tensor that stay: sorted indices out of `size`."""

    parameter: str
    dim: int
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is kept of a dense model, and how that was decided.

    `keep_fraction` is what was asked for (0-1); `axes` lists only dims that lose positions.
    """

    criterion: str
    allocation: str
    keep_fraction: float
    multiple: int
    groups: tuple[KeptGroup, ...]
    axes: tuple[KeptAxis, ...]
    tensors: tuple[TensorShape, ...]

    @property
    def removed_units(self) -> int:
        """How many units go, over all groups."""
        return sum(group.width - len(group.keep) for group in self.groups)

    @property
    def unit_keep_fraction(self) -> float:
        """Share of all units that stays, 0-1 (1.0 for a model without groups)."""
        total = sum(group.width for group in self.groups)
        return 1.0 - self.removed_units / total if total else 1.0

    @property
    def fingerprint(self) -> str:
        """sha256 of the axes: two plans that remove the same have the same."""
        text = json.dumps([asdict(axis) for axis in self.axes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def keep_mask(self) -> dict[str, NDArray[np.bool_]]:
        """Boolean mask over each dense tensor of the state dict, True = stays."""
        by_owner: dict[str, list[KeptAxis]] = {}
        for axis in self.axes:
            by_owner.setdefault(axis.parameter, []).append(axis)
        masks = {}
        for tensor in self.tensors:
            mask = np.ones(tensor.shape, dtype=bool)
            for axis in by_owner.get(tensor.same_as or tensor.name, []):
                stays = np.zeros(axis.size, dtype=bool)
                stays[list(axis.keep)] = True
                mask &= stays.reshape([-1 if d == axis.dim else 1 for d in range(mask.ndim)])
            masks[tensor.name] = mask
        return masks

    def to_json(self) -> str:
        """Readable JSON: one line a group and an axis, so that a diff shows what changed."""
        head = {
            "schema": SCHEMA,
            "criterion": self.criterion,
            "allocation": self.allocation,
            "keep_fraction": self.keep_fraction,
            "multiple": self.multiple,
        }
        lines = [f'  "{key}": {json.dumps(value)},' for key, value in head.items()]
        for key, rows in (("groups", self.groups), ("axes", self.axes), ("tensors", self.tensors)):
            body = ",\n".join("    " + json.dumps(asdict(row)) for row in rows)
            lines.append(f'  "{key}": [\n{body}\n  ],' if rows else f'  "{key}": [],')
        return "{\n" + "\n".join(lines).rstrip(",") + "\n}\n"

    def save(self, path: Path) -> None:
        """Write `to_json()` to `path`."""
        path.write_text(self.to_json(), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class _File(Plan):
    __pydantic_config__ = ConfigDict(extra="forbid")

    schema: Literal[1]


def read_plan(text: str, *, where: str = "plan.json") -> Plan:
    """A plan from its JSON. Raises `PlanError` where a key or a number does not fit."""
    try:
        data = TypeAdapter(_File).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise PlanError(
            f"plan at {where}, {'.'.join(map(str, first['loc'])) or 'the file'}: expected a plan "
            f"of schema {SCHEMA}, got {str(first.get('input'))[:60]} ({first['msg']}). "
            "Use a plan.json that edgeprune wrote.",
            where=where,
        ) from error
    for group in data.groups:
        _require_indices(group.name, group.keep, group.width, where)
    for axis in data.axes:
        _require_indices(axis.parameter, axis.keep, axis.size, where)
    names = [field.name for field in fields(Plan)]
    return Plan(**{name: getattr(data, name) for name in names})


def _require_indices(name: str, keep: tuple[int, ...], size: int, where: str) -> None:
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= size:
        raise PlanError(
            f"plan at {where}, {name}: expected sorted indices from 0 to {size - 1}, at least "
            f"one, got {list(keep)[:8]}. Use a plan.json that edgeprune wrote.",
            where=name,
        )


def plan(
    analysis: Analysis,
    scores: Scores,
    *,
    keep_fraction: float = 0.5,
    allocation: str = "uniform",
    multiple: int = 1,
    keep: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    fractions: Mapping[str, float] | None = None,
    min_width: int | Mapping[str, int] = 1,
    depthwise_multiple: int = DEPTHWISE_MULTIPLE,
) -> Plan:
    """Decide which units stay: the best of each group by `scores`.

    `keep_fraction` (0-1]: share of units kept, of every group with `uniform`, of all units
    together with `global`. Widths are rounded to a multiple of `multiple` positions, those of a
    depthwise convolution also to one of `depthwise_multiple`.

    Shell patterns over tensor names say which groups are meant. `keep`: tensors that stay as they
    are. `only`: the layers whose width may shrink, by the weights that make it. `fractions`:
    {pattern: share kept (0-1]} for such layers, instead of `keep_fraction`; with `global` they do
    not compete with the others. `min_width`: the fewest units left of a width, one number or
    {pattern: number}; a width that is smaller stays whole.
    Raises `PlanError` for scores of another analysis, a value out of range, a pattern that matches
    nothing, and two that ask different shares of one width.
    """
    selection = Selection(keep=keep, only=only, fractions=fractions or {}, min_width=min_width)
    request = Request(keep_fraction, allocation, multiple, depthwise_multiple, selection)
    return plan_for(analysis, scores, request)


def plan_for(analysis: Analysis, scores: Scores, request: Request) -> Plan:
    """`plan`, asked for with one value."""
    _require_fitting(analysis, scores)
    kept = allocate(analysis.groups, scores.values, request, analysis.tensors)
    removed = {
        group.name: ~np.isin(np.arange(group.width), kept[group.name]) for group in analysis.groups
    }
    removed = analysis.spare(removed, scores.values)
    return make_plan(analysis, removed, request, scores.criterion)


def _require_fitting(analysis: Analysis, scores: Scores) -> None:
    values = getattr(scores, "values", None)
    if not isinstance(values, Mapping):
        raise UsageError(
            f"plan at scores: expected Scores, got {type(scores).__name__}. "
            "Write plan(analysis, score(analysis))."
        )
    for group in analysis.groups:
        found = len(values.get(group.name, ()))
        if found != group.width:
            raise PlanError(
                f"plan at the scores of {group.name}: expected one for each of its {group.width} "
                f"units, got {found}. Score the analysis that the plan is made for.",
                where=group.name,
            )


def make_plan(
    analysis: Analysis,
    removed: Mapping[str, NDArray[np.bool_]],
    request: Request,
    criterion: str,
) -> Plan:
    """The plan that removes the marked units: group name -> boolean (units,), True = goes."""
    gone: dict[tuple[str, int], NDArray[np.bool_]] = {}
    groups = []
    for group in analysis.groups:
        mask = removed[group.name]
        stays = tuple(int(i) for i in np.flatnonzero(~mask))
        groups.append(KeptGroup(name=group.name, kind=group.kind, width=group.width, keep=stays))
        for table in group.tables:
            axis = gone.setdefault((table.parameter, table.dim), np.zeros(table.size, dtype=bool))
            axis[table.positions[mask].reshape(-1)] = True
    axes = tuple(
        KeptAxis(
            parameter=name, dim=dim, size=len(mask), keep=tuple(np.flatnonzero(~mask).tolist())
        )
        for (name, dim), mask in gone.items()
        if mask.any()
    )
    return Plan(
        criterion=criterion,
        allocation=request.allocation,
        keep_fraction=request.keep_fraction,
        multiple=request.multiple,
        groups=tuple(groups),
        axes=axes,
        tensors=analysis.tensors,
    )
