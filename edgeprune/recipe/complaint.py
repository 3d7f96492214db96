"""A Pydantic validation error, said in edgeprune's words: key, expected, got, what to do."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_EXPECTED = {
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
    "string_type": "a string",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """One mistake: the dotted key, what was expected there, what stands there, what to do."""

    key: str
    expected: str
    got: str
    advice: str

    def __str__(self) -> str:
        return f"at {self.key}: expected {self.expected}, got {self.got}. {self.advice}"


def complaints(error: ValidationError, model: type[BaseModel]) -> tuple[Complaint, ...]:
    """Every mistake of a document that should have been a `model`, in the document's order."""
    return tuple(_complaint(detail, model) for detail in error.errors())


def _complaint(detail: ErrorDetails, model: type[BaseModel]) -> Complaint:
    location = detail["loc"]
    key = ".".join(str(part) for part in location) or "the top level"
    parent, description = _walk(location, model)
    if detail["type"] == "extra_forbidden":
        known = [] if parent is None else list(parent.model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        return Complaint(
            key=key,
            expected=f"one of the keys {', '.join(known)}",
            got=repr(location[-1]),
            advice=f"Did you mean {near[0]!r}?" if near else "Remove it.",
        )
    if detail["type"] == "missing":
        return Complaint(key=key, expected="a value", got="none", advice=f"Set it: {description}")
    return Complaint(
        key=key,
        expected=_expected(detail),
        got=_shown(detail["input"]),
        advice=description or "Mend it.",
    )


def _expected(detail: ErrorDetails) -> str:
    """What Pydantic wanted, without its vocabulary."""
    if detail["type"] in _EXPECTED:
        return _EXPECTED[detail["type"]]
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if text.startswith(("greater", "less")):
        return f"a value {text}"
    return text[0].lower() + text[1:]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _walk(
    location: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[type[BaseModel] | None, str]:
    """The table that holds the last key of `location`, and that key's description."""
    parent: type[BaseModel] | None = model
    description = ""
    for index, part in enumerate(location):
        field = None if parent is None else parent.model_fields.get(str(part))
        if field is None:
            return (parent if index == len(location) - 1 else None), description
        description = field.description or ""
        if index < len(location) - 1:
            parent = _table_of(field.annotation)
    return parent, description


def _table_of(annotation: object) -> type[BaseModel] | None:
    """The Pydantic model inside an annotation such as `Section`, `Section | None`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
