"""The answer to --explain as text: what can go with what, or the chain to what forbids it."""

from __future__ import annotations

from rich.text import Text

from edgeprune.cli.tables import wrapped
from edgeprune.graph.explain import Account, Explanation, Removable, Stuck
from edgeprune.graph.joins import Coupled, Step
from edgeprune.graph.phrases import BIASED, MEETS, NORMALISED, READS, REVERSED, TIED

_SHOWN = 12
"""Coupled tensors listed before the rest is counted; all with -v."""


def explain_lines(found: Explanation, width: int, *, every: bool) -> list[Text]:
    """The accounts of a name, alike ones together, for a console of `width` columns."""
    lines = [Text(f"{found.name} ({found.kind})", style="bold underline")]
    told: dict[str, str] = {}
    for places, account in _alike(found.accounts):
        lines.append(Text())
        for part in account.stuck:
            lines += _stuck(places, part, account.size, width)
        for group in account.removable:
            lines += _removable(places, group, account.size, told, width, every)
    if not found.accounts:
        lines.append(Text("It carries no width: nothing along any of its dims has units."))
    return lines


def _alike(accounts: tuple[Account, ...]) -> list[tuple[str, Account]]:
    """Accounts with the same reasons told once, with all of their places."""
    found: dict[object, tuple[list[str], Account]] = {}
    for account in accounts:
        reasons = tuple((part.reason, part.where, part.chain) for part in account.stuck)
        key = (reasons, account.size) if not account.removable else account
        found.setdefault(key, ([], account))[0].append(account.place)
    return [(", ".join(places), account) for places, account in found.values()]


def _stuck(places: str, part: Stuck, size: int, width: int) -> list[Text]:
    some = "" if part.positions == size else f" {part.positions} of"
    each = " each" if ", " in places else ""
    head = f"{places},{some} {_plural(size, 'position')}{each}: cannot be pruned"
    lines = wrapped(head, width, 0, 2)
    _stress(lines, "cannot be pruned", "bold red")
    lines += _field("why", part.reason, width)
    if part.node:
        lines += _field("where", _at(part.operator, part.module, part.where), width)
    if part.chain:
        lines += _chain(part.chain, width)
    return lines + _field("to free it", part.advice, width)


def _removable(
    places: str, group: Removable, size: int, told: dict[str, str], width: int, every: bool
) -> list[Text]:
    mine = group.units * group.positions_a_unit
    some = "" if mine == size else f" {mine} of"
    head = f"{places},{some} {_plural(size, 'position')}: can be pruned"
    lines = wrapped(head, width, 0, 2)
    _stress(lines, "can be pruned", "bold green")
    a_unit = f", {_plural(group.positions_a_unit, 'position')} each"
    units = f"{group.units} of its {group.width} {group.kind}s" + a_unit
    if group.units == group.width:
        units = f"{_plural(group.width, group.kind)}{a_unit}"
    lines += _field("group", f"{group.group}: {units}", width)
    if group.group in told:
        return lines + _field("with it", f"as for {told[group.group]}", width)
    told[group.group] = places
    partners = [found for found in group.coupled if found.step is not None]
    if not partners:
        return lines + _field("with it", "nothing else", width)
    lines.append(Text("  with it go"))
    for found in partners if every else partners[:_SHOWN]:
        lines += _partner(found, width)
    if not every and len(partners) > _SHOWN:
        lines.append(Text(f"    and {len(partners) - _SHOWN} more; -v lists all"))
    return lines


def _partner(found: Coupled, width: int) -> list[Text]:
    """`layer1.0.bn2.weight dim 0: layer1.0.conv2.weight dim 0 is normalised by it (file:line)`."""
    step = found.step
    if step is None:
        return []
    sentence = {
        READS: f"{step.before} reads it",
        BIASED: f"it is the bias of {step.before}",
        REVERSED[BIASED]: f"{step.before} is its bias",
        REVERSED[NORMALISED]: f"{step.before} normalises it",
        MEETS: f"{step.before} meets it",
    }.get(step.how, f"{step.before} is {step.how} it")
    if step.how.startswith(TIED):
        sentence = step.how
    place = f"{found.parameter} dim {found.dim}"
    return wrapped(f"{place}: {sentence} ({step.where})", width, 4, 6)


def _chain(chain: tuple[Step, ...], width: int) -> list[Text]:
    lines = [Text("  chain")]
    lines += wrapped(f"1. {chain[0].before}", width, 4, 7)
    for number, step in enumerate(chain, start=2):
        at = _at(step.operator, step.module, step.where)
        lines += wrapped(f"{number}. {step.how} {step.after}: {at}", width, 4, 7)
    return lines


def _at(operator: str, module: str, where: str) -> str:
    """`add in layer1.0, torchvision/models/resnet.py:102`."""
    inside = f"{operator} in {module}" if module else operator
    return f"{inside}, {where}" if where else inside


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _stress(lines: list[Text], words: str, style: str) -> None:
    for line in lines:
        line.highlight_words([words], style)


def _field(name: str, text: str, width: int) -> list[Text]:
    return wrapped(f"{name:<10}  {text}", width, 2, 14)
