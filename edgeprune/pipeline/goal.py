"""The budget as a goal: which share of the units may stay at each point of the way to it.

The way is geometric: at `position` 0 nothing is removed, at 1 the budget is met, and equal steps
of position multiply MACs (parameters, units, latency) by equal factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeprune.errors import BudgetNotMet
from edgeprune.graph.analysis import Analysis
from edgeprune.planning.cost import Cost, cost
from edgeprune.planning.plan import Plan
from edgeprune.recipe.pruning import BudgetKind
from edgeprune.surgery.forecast import forecast

# Bisecting a share of the units this often leaves 1/4096: widths in the thousands.
_BISECTIONS = 12
_LEAST = 2.0**-_BISECTIONS
# Shares of whole units are told apart beyond this.
UNIT_ROUNDING = 1e-9

Planner = Callable[[float], Plan]
"""keep_fraction -> the plan that leaves that share of the dense units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A budget: `limit` is the share of units, MACs or parameters that may stay at the end.

    `units` is set where the budget comes down to a share of units: keep_fraction itself, and a
    speedup, for which it was measured. `strict`: rounded widths must not leave more than that
    share. So it is with `global`, where one group makes up for another; `uniform` cuts each group
    to the nearest width that it may have. `held_by` names the options of [prune] that hold single
    widths at other shares.
    """

    kind: BudgetKind
    value: float
    units: float | None
    dense: Cost
    strict: bool = False
    held_by: tuple[str, ...] = ()

    def keep_fraction(self, position: float, dense: Analysis, planner: Planner) -> float:
        """Largest share of the units (0-1) that keeps within the budget at `position` (0-1].

        Raises BudgetNotMet when no share does at the end, position 1.
        """
        if self.units is not None and not self.strict:
            return float(self.units**position)
        limit = float((self.value if self.units is None else self.units) ** position)

        def left(share: float) -> float:
            plan = planner(share)
            if self.units is not None:
                return plan.unit_keep_fraction
            return self.share(forecast(dense, plan))

        # Widths with a small share of their own leave the others more than the budget's.
        high = 1.0 if self.units is None or "fractions" in self.held_by else limit
        if left(high) <= limit + UNIT_ROUNDING:
            return high
        if left(_LEAST) > limit + UNIT_ROUNDING:
            if position < 1.0:  # rounded widths in between; the end is what counts
                return _LEAST
            raise self.missed(left(_LEAST))
        low = _LEAST
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if left(middle) <= limit + UNIT_ROUNDING else (low, middle)
        return low

    def share(self, left: Cost) -> float:
        """Share (0-1) of the dense model's parameters or MACs that is left."""
        if self.kind == "params_fraction":
            return left.params / max(1, self.dense.params)
        return left.macs / max(1, self.dense.macs)

    def missed(self, reached: float) -> BudgetNotMet:
        """The error for a budget beyond what removal can do."""
        order = "at least" if self.kind == "speedup" else "at most"
        best = "at most" if self.kind == "speedup" else "at least"
        smallest, loosen = "its smallest width", ""
        if self.held_by:
            smallest = f"the smallest width that {' and '.join(self.held_by)} allow"
            loosen = f"loosen {' or '.join(self.held_by)}, "
        return BudgetNotMet(
            f"planning at budget {self.kind}: expected {order} {self.value:g}, got {best} "
            f"{reached:.4g} with every group at {smallest}. Ask for less, {loosen}lower [prune] "
            f"multiple, or see what is pinned with `edgeprune inspect`.",
            where=f"prune.budget.{self.kind}",
        )


def goal_of(
    kind: BudgetKind,
    value: float,
    dense: Analysis,
    *,
    units: float | None = None,
    strict: bool = False,
    held_by: tuple[str, ...] = (),
) -> Goal:
    """The goal of a budget on a dense model."""
    return Goal(
        kind=kind,
        value=value,
        units=units,
        dense=cost(dense.captured),
        strict=strict,
        held_by=held_by,
    )
