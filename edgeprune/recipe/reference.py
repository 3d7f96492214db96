"""The recipe's reference, made from the recipe's own tables: `docs/recipe.md`, the JSON schema.

`python -m edgeprune.recipe.reference docs` writes both anew. In `recipe.md` only what stands
between two marks is replaced; the rest is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from edgeprune.errors import UsageError
from edgeprune.recipe.schema import Recipe, recipe_schema
from edgeprune.recipe.table import Section

BEGIN = "<!-- begin: made by python -m edgeprune.recipe.reference docs -->"
END = "<!-- end -->"

# What a number counts, for every key that is one.
UNITS = {
    "accuracy_drop": "share",
    "batch": "samples",
    "confidence": "share",
    "distillation": "share",
    "epochs": "passes",
    "fractions": "share",
    "final_epochs": "passes",
    "keep_fraction": "share",
    "latency_ms": "milliseconds",
    "learning_rate": "per step",
    "macs_fraction": "share",
    "max_accuracy_drop": "share",
    "min_width": "units",
    "multiple": "units",
    "opset": "version",
    "params_fraction": "share",
    "parity": "standard deviations",
    "ridge": "mean diagonals",
    "rounds": "rounds",
    "samples": "samples",
    "score_samples": "samples",
    "seed": "none",
    "size_mib": "MiB",
    "size_ratio": "ratio",
    "speedup": "ratio",
    "temperature": "none",
    "threads": "threads",
    "weight_decay": "per step",
}

_SIGNS = (
    (annotated_types.Gt, "gt", "above"),
    (annotated_types.Ge, "ge", "from"),
    (annotated_types.Lt, "lt", "below"),
    (annotated_types.Le, "le", "to"),
)


def reference() -> str:
    """Every table of the recipe as Markdown: key, unit, default, range, example, meaning."""
    blocks: list[str] = []
    for heading, section in _tables(Recipe, ""):
        rows = [
            _row(name, field)
            for name, field in section.model_fields.items()
            if _inner(field.annotation) is None
        ]
        blocks.append(
            f"### {heading}\n\n{_sentence(section)}\n\n"
            "| key | unit | default | range | example | what it is |\n|---|---|---|---|---|---|\n"
            + "\n".join(rows)
        )
    return "\n\n".join(blocks)


def write_reference(folder: Path) -> None:
    """Write `recipe.schema.json` and the made part of `recipe.md` in `folder`."""
    page = folder / "recipe.md"
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(
            f"writing the reference at {page}: expected the marks {BEGIN} and {END}, got a page "
            f"without. Put them where the tables belong.",
            where=str(page),
        )
    page.write_text(f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}", encoding="utf-8")
    (folder / "recipe.schema.json").write_text(schema_text(), encoding="utf-8")


def schema_text() -> str:
    """The JSON schema as it is published."""
    return json.dumps(recipe_schema(), indent=2) + "\n"


def _tables(section: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    """Each table below `section` with its heading, in the order of the keys."""
    for name, field in section.model_fields.items():
        inner = _inner(field.annotation)
        if inner is not None:
            yield f"`[{prefix}{name}]`", inner
            yield from _tables(inner, f"{prefix}{name}.")


def _inner(annotation: object) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _sentence(section: type[Section]) -> str:
    text = (section.__doc__ or "").partition("\n")[0].partition(": ")[2]
    return text[:1].upper() + text[1:]


def _row(name: str, field: FieldInfo) -> str:
    description = (field.description or "").replace("|", "\\|")
    cells = (f"`{name}`", _unit(name, field), _default(field), _range(field), _example(field))
    return f"| {' | '.join(cells)} | {description} |"


def _unit(name: str, field: FieldInfo) -> str:
    return UNITS[name] if set(_leaves(field.annotation)) & {int, float} else ""


def _leaves(annotation: object) -> Iterator[object]:
    """The types inside an annotation: `float` in `dict[str, Annotated[float, ...]]`."""
    inner = [arg for arg in get_args(annotation) if get_origin(annotation) is not Literal]
    if not inner:
        yield annotation
    for argument in inner:
        yield from _leaves(argument)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "`{}`"
    return "not set" if field.default is None else f"`{_toml(field.default)}`"


def _example(field: FieldInfo) -> str:
    """The examples that a field names, or its default, or the least that it takes."""
    least = [bound.ge for bound in field.metadata if isinstance(bound, annotated_types.Ge)]
    values = field.examples or ([] if field.default is None else [field.default]) or least
    return ", ".join(f"`{_toml(value)}`" for value in values)


def _range(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    if choices:
        return ", ".join(f"`{_toml(choice)}`" for choice in choices)
    limits = [
        f"{word} {getattr(bound, attribute)}".removesuffix(".0")
        for kind, attribute, word in _SIGNS
        for bound in field.metadata
        if isinstance(bound, kind) and getattr(bound, attribute) < 2**32
    ]
    return " ".join(limits) or _kind(field.annotation)


def _choices(annotation: object) -> tuple[object, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for inner in get_args(annotation) for choice in _choices(inner))


def _kind(annotation: object) -> str:
    names = {str: "text", bool: "`true`, `false`", int: "an integer", float: "a number"}
    if get_origin(annotation) in (dict, tuple):
        kind = "a table" if get_origin(annotation) is dict else "a list"
        return f"{kind} of patterns" if str in _leaves(annotation) else kind
    kinds = [annotation, *get_args(annotation)]
    return next((names[kind] for kind in kinds if isinstance(kind, type) and kind in names), "")


def _toml(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(member) for member in value)}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(key)} = {_toml(member)}" for key, member in value.items())
        return f"{{ {pairs} }}"
    return json.dumps(value) if isinstance(value, str) else str(value)


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
