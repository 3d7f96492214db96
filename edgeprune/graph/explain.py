"""Why a width cannot be pruned, or what goes with it: for a tensor, a module or a graph node."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from edgeprune.errors import UsageError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.groups import Group
from edgeprune.graph.joins import Coupled, Joins, Record, Step
from edgeprune.graph.labels import Axis, Cause, varying
from edgeprune.graph.phrases import advice_for, operator_name
from edgeprune.graph.propagate import layers_of

_ALONE = "all positions stand or fall together, so the width is all or nothing"
_BESIDE = "laid beside positions that cannot go"
_UNREAD = "nothing reads it in eval mode, so nothing can say what it needs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removable:
    """These positions can go: the group they belong to, and every tensor dim that goes too.

    `units` of the group's `width` lie here, `positions_a_unit` positions each.
    """

    group: str
    kind: str
    width: int
    units: int
    positions_a_unit: int
    coupled: tuple[Coupled, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """These positions cannot go: why, at which node, the chain that leads there, what would help.

    `chain` is empty where the cause is at the positions themselves.
    """

    positions: int
    reason: str
    node: str
    operator: str
    module: str
    where: str
    chain: tuple[Step, ...]
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What holds for one dim of a tensor or of a node's value, of `size` positions."""

    place: str
    size: int
    removable: tuple[Removable, ...]
    stuck: tuple[Stuck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The accounts of everything that a name stands for: `kind` is tensor, module or node."""

    name: str
    kind: str
    accounts: tuple[Account, ...]

    @property
    def summary(self) -> str:
        """One line: the groups that it belongs to, and the reasons that pin it."""
        groups = dict.fromkeys(f"in group {r.group}" for a in self.accounts for r in a.removable)
        reasons = dict.fromkeys(f"pinned: {s.reason}" for a in self.accounts for s in a.stuck)
        return f"{self.name}: {'; '.join([*groups, *reasons]) or 'it carries no width'}"


def explain(analysis: Analysis, name: str) -> Explanation:
    """What holds for a tensor of the state dict, the tensors of a module, or a node of the graph.

    Raises UsageError for a name that is none of them, with the nearest ones.
    """
    teller = _Teller(analysis)
    aliases = {t.name: t.same_as or t.name for t in analysis.tensors}
    owned = [axis for axis in teller.axes if axis.owner == aliases.get(name, name)]
    nodes = {node.name: node for node in analysis.captured.module.graph.nodes}
    if name in aliases or (owned and owned[0].is_parameter):
        accounts = tuple(teller.of_axis(axis) for axis in owned)
        kind = "tensor"
        if not accounts:
            accounts = (teller.unread(name, analysis),)
    elif any(known.startswith(f"{name}.") for known in aliases):
        kind, below = "module", {a for n, a in aliases.items() if n.startswith(f"{name}.")}
        accounts = tuple(teller.of_axis(axis) for axis in teller.axes if axis.owner in below)
    elif name in nodes:
        kind, accounts = "node", teller.of_node(nodes[name])
    else:
        modules = {known.rpartition(".")[0] for known in aliases} - {""}
        near = difflib.get_close_matches(name, [*aliases, *modules, *nodes], n=3, cutoff=0.5)
        advice = f"Did you mean {' or '.join(near)}?" if near else "See `edgeprune inspect -v`."
        raise UsageError(
            f"explaining {name!r}: expected a tensor of the state dict, a module with tensors, or "
            f"a node of the graph, got none of that name. {advice}",
            where=name,
        )
    return Explanation(name=name, kind=kind, accounts=accounts)


@dataclass(slots=True, eq=False)
class _Found:
    """A cause met on the way: the first label that it holds for, and the labels pinned so."""

    label: int
    goals: NDArray[np.int64]
    positions: int = 0


class _Teller:
    """Answers questions about labels of one analysis."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.labels = analysis.walk.labels
        self.axes = [axis for axis in self.labels.axes if axis.is_parameter]
        self.classes = self.labels.classes()
        self.record = Record(analysis)
        self.nodes = {node.name: node for node in analysis.captured.module.graph.nodes}

    def of_axis(self, axis: Axis) -> Account:
        """The account of one dim of a tensor."""
        span = np.arange(axis.first_label, axis.first_label + axis.size)
        return self._account(f"{axis.owner} dim {axis.dim}", span)

    def of_node(self, node: fx.Node) -> tuple[Account, ...]:
        """The accounts of a node's value: one for each axis along which it has positions."""
        accounts = []
        for layer in layers_of(self.analysis.walk.values[node.name]):
            dims = " x ".join(f"dim {dim}" for dim in varying(layer))
            place = f"{node.name} ({operator_name(node)}) {dims}".rstrip()
            accounts.append(self._account(place, layer.reshape(-1).numpy()))
        return tuple(accounts)

    def unread(self, name: str, analysis: Analysis) -> Account:
        """A tensor without labels: unread, or of single positions only."""
        shapes = {tensor.name: tensor.shape for tensor in analysis.tensors}
        single = all(size == 1 for size in shapes[name])
        reason = "each of its dims has a single position" if single else _UNREAD
        advice = "Nothing." if single else "Nothing: it is not part of the pruned model's forward."
        nowhere = self._stuck(1, Cause(reason, "", ""), (), advice)
        return Account(place=name, size=1, removable=(), stuck=(nowhere,))

    def _account(self, place: str, span: NDArray[np.int64]) -> Account:
        part = self.analysis.partition
        removable = []
        for index in dict.fromkeys(part.group_of_label[span].tolist()):
            if index >= 0:
                mine = span[part.group_of_label[span] == index]
                removable.append(self._removable(self.analysis.groups[index], mine))
        fixed = span[part.group_of_label[span] < 0]
        found: dict[Cause, _Found] = {}
        for cls in np.unique(self.classes[fixed]).tolist():
            mine = fixed[self.classes[fixed] == cls]
            cause, goals = self._cause(int(mine[0]))
            first = found.setdefault(cause, _Found(int(mine[0]), goals))
            first.positions += len(mine)
        stuck = [
            self._stuck(
                first.positions, cause, self._chain(first.label, first.goals), advice_for(cause)
            )
            for cause, first in found.items()
        ]
        return Account(place=place, size=len(span), removable=tuple(removable), stuck=tuple(stuck))

    def _removable(self, group: Group, mine: NDArray[np.int64]) -> Removable:
        units = np.unique(self.analysis.partition.unit_of_label[mine])
        return Removable(
            group=group.name,
            kind=group.kind,
            width=group.width,
            units=len(units),
            positions_a_unit=len(mine) // len(units),
            coupled=self._joins(int(mine[0])).coupled(int(mine[0])),
        )

    def _joins(self, label: int) -> Joins:
        return Joins(self.record, self.classes == self.classes[label])

    def _chain(self, label: int, goals: NDArray[np.int64]) -> tuple[Step, ...]:
        return self._joins(label).chain(label, goals) if label else ()

    def _cause(self, label: int) -> tuple[Cause, NDArray[np.int64]]:
        """Why a label may not go, as the analysis says it, and the labels that are pinned so."""
        mine = self.classes[label]
        nothing = np.zeros(0, dtype=np.int64)
        if label == 0:
            return Cause("it carries no removable width", "", ""), nothing
        pins = [
            (cause, flat[self.classes[flat] == mine])
            for flat, cause in self.labels.pin_causes()
            if (self.classes[flat] == mine).any()
        ]
        if pins:
            return min(pins, key=lambda pin: pin[0].by_nature)  # stable: the first of a kind
        for one, two, name in self.labels.joined():
            for side, other in ((one, two), (two, one)):
                here = side[(other == 0) & (self.classes[side] == mine)]
                if len(here):
                    return Cause(_BESIDE, name, self._where(name)), here
        cause = Cause(_ALONE, "", "")
        for flat, tie in self.labels.tie_causes():
            if (self.classes[flat] == mine).any():
                cause = Cause(f"{_ALONE}: {tie.reason}", tie.node, tie.where)
        others = np.flatnonzero(self.classes == mine)
        return cause, others[(others != label) & self._beside(label, others)]

    def _beside(self, label: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which labels lie in the same dim as `label`."""
        axis = next(a for a in self.labels.axes if a.first_label <= label < a.first_label + a.size)
        return (others >= axis.first_label) & (others < axis.first_label + axis.size)

    def _where(self, node: str) -> str:
        return str(self.nodes[node].meta.get("where", "")) if node in self.nodes else ""

    def _stuck(self, positions: int, cause: Cause, chain: tuple[Step, ...], advice: str) -> Stuck:
        node = self.nodes.get(cause.node)
        return Stuck(
            positions=positions,
            reason=cause.reason,
            node=cause.node,
            operator="" if node is None else operator_name(node),
            module="" if node is None else str(node.meta.get("module", "")),
            where=cause.where,
            chain=chain,
            advice=advice,
        )
