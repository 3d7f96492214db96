"""`edgeprune inspect`: what can go, together with what, and what cannot, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeprune.cli.options import ExactOnly, InputShapes, Json, Model, Quiet, Verbose, Weights
from edgeprune.cli.session import Session, session

if TYPE_CHECKING:
    from edgeprune.cli.inspection import Inspection

_SHOWN = 3
"""Coupled tensors and pinned units named in a row before the rest is counted."""


def inspect_command(
    model: Model,
    weights: Weights = None,
    input: InputShapes = None,  # noqa: A002 (the option's name)
    exact_only: ExactOnly = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """List the groups of a model with what a unit saves, and the pins with reason and line.

    -v lists every coupled parameter and every pinned unit.
    """
    with session(json=json, quiet=quiet, verbose=verbose) as current:
        from dataclasses import asdict

        from edgeprune.cli.inspection import inspection
        from edgeprune.graph.analysis import analyze
        from edgeprune.recipe.model import load_model

        loaded = load_model(model, weights=weights, input=input)
        analysis = analyze(loaded.module, loaded.args, loaded.kwargs, exact_only=exact_only)
        found = inspection(loaded.name, analysis)
        current.data(asdict(found))
        _show(current, found)


def _show(current: Session, found: Inspection) -> None:
    from edgeprune.cli.tables import table
    from edgeprune.release.wording import count, figure, percent

    most = 10**6 if current.verbose else _SHOWN
    groups = [
        (
            row.name,
            row.kind,
            str(row.width),
            figure(row.params_per_unit, 6),
            percent(row.share, 1),
            _some(row.coupled if current.verbose else _modules(row.coupled, row.name), most)
            + _remarks(row.redefines, depthwise=row.depthwise),
        )
        for row in found.groups
    ]
    head = ("group", "kind", "width", "params / unit", "at most", "goes with")
    current.show(table("Groups", head, groups, "l l r r r l"), "")
    pins = [(_some(row.units, most), row.reason, row.where) for row in found.pins]
    if pins:
        current.show(table("Pinned", ("what", "why", "where"), pins), "")
    if found.unknown:
        current.show(
            table("Without a rule", ("operator",), [(name,) for name in found.unknown]), ""
        )
    if found.lost:
        lost = [(text,) for text in found.lost]
        current.show(table("Lost by capturing in eval mode", ("what",), lost), "")
    units = sum(row.width for row in found.groups)
    pinned = sum(len(row.units) for row in found.pins)
    current.line(
        f"{found.model}: {count(found.params)} parameters, {len(found.groups)} groups with "
        f"{count(units)} units, {pinned} pinned"
    )


def _some(names: tuple[str, ...], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _modules(coupled: tuple[str, ...], group: str) -> tuple[str, ...]:
    """The layers that go with a group, without the one it is named after."""
    parameters = (place.partition(" ")[0] for place in coupled)
    owners = dict.fromkeys(name.rpartition(".")[0] or name for name in parameters)
    return tuple(owner for owner in owners if owner != group.rpartition(".")[0])


def _remarks(redefines: tuple[str, ...], *, depthwise: bool) -> str:
    remarks = [f"redefines {', '.join(redefines)}"] if redefines else []
    remarks += ["depthwise"] if depthwise else []
    return f" ({'; '.join(remarks)})" if remarks else ""
