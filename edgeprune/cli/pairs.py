"""Options that are said as PATTERN=NUMBER."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from edgeprune.errors import UsageError

N = TypeVar("N", int, float)


def by_pattern(
    option: str, given: Sequence[str], number: Callable[[str], N], form: str
) -> dict[str, N]:
    """`["layer4.*=0.25"]` as `{"layer4.*": 0.25}`; a number alone is for every width, `*`.

    A number alone is taken only where `form` has its pattern in brackets. Raises UsageError for
    what is not of the form, and for a pattern that is given twice.
    """
    found: dict[str, N] = {}
    for text in given:
        pattern, equals, value = text.rpartition("=")
        if not equals and form.startswith("["):
            pattern = "*"
        try:
            read = number(value)
        except ValueError:
            read = None
        if read is None or not pattern or pattern in found:
            got = f"{pattern!r} twice" if pattern in found else repr(text)
            raise UsageError(
                f"reading {option}: expected {form}, got {got}. Give each pattern one number.",
                where=option,
            )
        found[pattern] = read
    return found
