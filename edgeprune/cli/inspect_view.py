"""An inspection as text that reads well without knowing the code: 80 columns, 120, or a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from edgeprune.cli.folding import Folded, fold, fold_names
from edgeprune.cli.inspection import CoupledRow, GroupRow, Inspection, PinReason
from edgeprune.cli.tables import wrapped
from edgeprune.graph.phrases import ADDED, BIASED, CONTRACTED, MULTIPLIED, NORMALISED, READ_BY
from edgeprune.release.wording import count, percent

_SHOWN = 3
"""Names in a sentence before the rest is counted; all with -v."""

_LEGEND = (
    "A group is a width that can shrink. Its units (channels, neurons, heads) go one by one, each "
    "with its part of every layer that is named below it. 'One saves' counts the parameters and "
    "multiply-accumulates (MACs, a sample) that go with one unit; 'all but one' is the share of "
    "the whole model that goes if a single unit is left."
)
_FOLDED = "{0-5} stands for blocks that are alike, x6 for their number; -v lists each."
_PINNED = (
    "What cannot shrink, why, and the line that says so. --explain NAME tells more of a tensor, a "
    "module or a graph node."
)
_FIGURES = 50  # columns that the figures of a group take
_LEAST_NAME = 20
_ORDER = (ADDED, MULTIPLIED, CONTRACTED, NORMALISED, READ_BY)
_OWN_SUFFIXES = (".weight", ".bias", ".running_mean", ".running_var")


def inspect_lines(found: Inspection, width: int, *, every: bool) -> list[Text]:
    """The whole report, a line each, for a console of `width` columns.

    `every`: no folding of repeated blocks, and every name.
    """
    lines = _groups(found, width, every)
    lines += _pins(found.pins, width, every)
    if found.unknown:
        names = ", ".join(found.unknown)
        text = f"What feeds these is pinned: {names}."
        lines += [_title("Operators without a rule"), *wrapped(text, width), Text()]
    if found.lost:
        lines += [
            _title("Lost by capturing in eval mode"),
            *_lost(found.lost, width, every),
            Text(),
        ]
    return lines


def headline(found: Inspection) -> str:
    """The totals, in one line."""
    units = sum(row.width for row in found.groups)
    pinned = sum(len(row.units) for row in found.pins)
    return (
        f"{found.model}: {count(found.params)} parameters, {count(found.macs)} MACs, "
        f"{len(found.groups)} groups with {count(units)} units, {pinned} pinned"
    )


def short(value: int) -> str:
    """Three digits with a unit: 769 -> '769', 150528 -> '151 k', 1200000 -> '1.2 M'."""
    if value < 10_000:
        return count(value)
    for unit, size in (("k", 10**3), ("M", 10**6), ("G", 10**9)):
        if value < 999.5 * size or unit == "G":
            break
    scaled = value / size
    return f"{scaled:.0f} {unit}" if scaled >= 99.5 else f"{scaled:.1f} {unit}"


def _groups(found: Inspection, width: int, every: bool) -> list[Text]:
    rows = [_cells(row, every) for row in found.groups]
    folded = [Folded(tuple(cells), 1) for cells in rows] if every else fold(rows)
    lines = [_title("Groups"), *wrapped(_LEGEND, width)]
    if any(row.times > 1 for row in folded):
        lines += wrapped(_FOLDED, width)
    if not folded:
        return [_title("Groups"), Text("None: the model has no width that can shrink."), Text()]
    longest = max(len(_name(row)) for row in folded) + 2
    names = min(longest, width - _FIGURES) if width - _FIGURES >= _LEAST_NAME else 0
    lines += [Text(), *(Text(line, style="dim") for line in _head(names))]
    for row in folded:
        name, (figures, *ties) = _name(row), row.cells[1:]
        if len(name) + 2 <= names:
            lines.append(Text(f"{name:<{names}}{figures}"))
        else:
            lines += [Text(name), Text(f"{'':<{names}}{figures}")]
        lines[-1 if len(name) + 2 <= names else -2].stylize("bold", 0, len(name))
        for tie in ties:
            how, _, rest = tie.partition(": ")
            lines += wrapped(f"{how:<14} {rest}", width, 2, 17)
    return [*lines, Text()]


def _head(names: int) -> tuple[str, str]:
    over = f"{'':<{names}}{'':>15}  {'one saves':>15}  {'all but one':>16}"
    under = f"{'':<{names}}{'units':>15}  {'params':>7} {'MACs':>7}  {'params':>8}{'MACs':>8}"
    return over, under


def _name(row: Folded) -> str:
    return f"{row.cells[0]} x{row.times}" if row.times > 1 else row.cells[0]


def _cells(row: GroupRow, every: bool) -> list[str]:
    """Name, figures, and a text for each way in which other layers are tied to the group."""
    kind = row.kind if row.width == 1 else f"{row.kind}s"
    figures = (
        f"{count(row.width):>6} {kind:<8}  {short(row.params_per_unit):>7} "
        f"{short(row.macs_per_unit):>7}  {percent(row.share, 1):>8}{percent(row.macs_share, 1):>8}"
    )
    return [row.name, figures, *_ties(row, every)]


def _ties(row: GroupRow, every: bool) -> list[str]:
    """`read by: a, b and 2 more`, by kind of tie; a layer's own bias goes without saying."""
    own = _layer(row.name.partition("#")[0])
    kinds: dict[str, list[CoupledRow]] = {}
    layers: set[str] = {own}
    # What makes the width or reads it names its layer before the bias of the same layer does.
    for tie in sorted(row.ties, key=lambda tie: not tie.makes and tie.how != READ_BY):
        layer = tie.tensor if every else _layer(tie.tensor)
        if tie.how in ("makes it", BIASED) or layer in layers:
            continue
        layers.add(layer)
        kinds.setdefault(tie.how, []).append(tie)
    ordered = sorted(kinds, key=lambda how: _ORDER.index(how) if how in _ORDER else len(_ORDER))
    texts = [f"{how}: {_named(kinds[how], every)}" for how in ordered]
    if row.redefines:
        texts.append("redefined: these LayerNorms then take their statistics over what is kept")
    if row.depthwise:
        texts.append("depthwise: a depthwise convolution works on it, so it is kept at multiples")
    return texts


def _named(ties: list[CoupledRow], every: bool) -> str:
    if every:
        return ", ".join(f"{tie.tensor} dim {tie.dim} ({tie.where})" for tie in ties)
    text = _some(fold_names([_layer(tie.tensor) for tie in ties]))
    lines = list(dict.fromkeys(tie.where for tie in ties if tie.where))
    if ties[0].how in (NORMALISED, READ_BY) or not lines:
        return text
    return f"{text} ({lines[0]}{' and other lines' if len(lines) > 1 else ''})"


def _layer(tensor: str) -> str:
    """The layer that a tensor belongs to; a bare parameter goes by its own name."""
    for suffix in _OWN_SUFFIXES:
        if tensor.endswith(suffix):
            return tensor.removesuffix(suffix)
    return tensor


def _pins(pins: Sequence[PinReason], width: int, every: bool) -> list[Text]:
    if not pins:
        return []
    lines = [_title("Pinned"), *wrapped(_PINNED, width), Text()]
    merged: dict[tuple[str, str], list[str]] = {}
    for row in pins:
        merged.setdefault((row.reason, row.where), []).extend(row.units)
    for (reason, where), units in merged.items():
        place = f" ({where})" if where else ""
        lines += wrapped(f"{reason}{place}", width, 0, 2)
        shown = list(units) if every else fold_names(units)
        for unit in shown if every else shown[: 2 * _SHOWN]:
            lines += wrapped(unit, width, 4, 6)
        if not every and len(shown) > 2 * _SHOWN:
            lines.append(Text(f"    and {len(shown) - 2 * _SHOWN} more"))
    return [*lines, Text()]


def _lost(lost: Sequence[str], width: int, every: bool) -> list[Text]:
    lines: list[Text] = []
    for text in lost if every else fold_names(lost):
        lines += wrapped(text, width, 0, 2)
    return lines


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _title(text: str) -> Text:
    return Text(text, style="bold underline")
