"""Repeated blocks as one row: `layer.0.fc`, `layer.1.fc`, `layer.2.fc` -> `layer.{0-2}.fc`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBERED = re.compile(r"(.*?)(\d+)")
_HOLE = "\0"


@dataclass(frozen=True, slots=True)
class Folded:
    """A row of texts that stands for `times` rows, which differ in the numbers of blocks only."""

    cells: tuple[str, ...]
    times: int


def fold(rows: Sequence[Sequence[str]]) -> list[Folded]:
    """Rows whose first cell is a dotted name, folded over numbered parts of that name.

    Rows are one where all cells are alike once the block's number is taken out, wherever the
    block is named: `b.0.a | read by b.0.c` and `b.1.a | read by b.1.c`. The innermost numbers are
    folded first; a row that stands alone stays as it is. Order: by the first of each.
    """
    folded = [Folded(tuple(cells), 1) for cells in rows]
    deepest = max((len(row.cells[0].split(".")) for row in folded), default=0)
    for part in reversed(range(deepest)):
        folded = _fold_at(folded, part)
    return folded


def fold_names(names: Sequence[str]) -> list[str]:
    """Names alone, folded: a list for a sentence."""
    return [row.cells[0] for row in fold([(name,) for name in dict.fromkeys(names)])]


def _fold_at(rows: list[Folded], part: int) -> list[Folded]:
    alike: dict[tuple[str, ...], list[tuple[str, Folded]]] = {}
    for row in rows:
        number, template = _without_number(row.cells, part)
        alike.setdefault((*template, str(row.times)), []).append((number, row))
    return [_merged(template[:-1], found) for template, found in alike.items()]


def _without_number(cells: tuple[str, ...], part: int) -> tuple[str, tuple[str, ...]]:
    """The number at one part of the first cell's name, and the cells with a hole in its place."""
    parts = cells[0].partition(" ")[0].split(".")
    match = _NUMBERED.fullmatch(parts[part]) if part < len(parts) else None
    if match is None:
        return "", cells
    before = "".join(f"{name}." for name in parts[:part]) + match[1]
    named = re.compile(rf"(?<![\w.]){re.escape(before + match[2])}(?![\w{{])")
    return match[2], tuple(named.sub(lambda _: before + _HOLE, cell) for cell in cells)


def _merged(template: tuple[str, ...], found: list[tuple[str, Folded]]) -> Folded:
    numbers = sorted({int(number) for number, _ in found if number})
    if len(numbers) < 2 or len(numbers) != len(found):
        # Alone, or alike to the last letter: then there is nothing to tell apart.
        _, first = found[0]
        return Folded(first.cells, sum(row.times for _, row in found))
    holes = tuple(cell.replace(_HOLE, _span(numbers)) for cell in template)
    return Folded(holes, sum(row.times for _, row in found))


def _span(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '{0-2,5}'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"{{{','.join(words)}}}"
