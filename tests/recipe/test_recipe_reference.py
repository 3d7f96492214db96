"""The published reference of the recipe: in step with the recipe itself."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from edgeprune.errors import UsageError
from edgeprune.recipe.reference import reference, write_reference
from edgeprune.recipe.schema import Recipe, recipe_schema
from edgeprune.recipe.table import Section

DOCS = Path(__file__).resolve().parents[2] / "docs"
AGAIN = "run: python -m edgeprune.recipe.reference docs"


def types(body: dict[str, object]) -> Iterator[str]:
    """The JSON types that a key takes, in a table of values too."""
    members = body.get("additionalProperties")
    for part in (body, *body.get("anyOf", []), *([members] if isinstance(members, dict) else [])):
        yield part.get("type")


def leaves(section: type[Section]) -> dict[str, Section]:
    """Every key that is no table, by name, with its field."""
    found = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        is_table = isinstance(inner, type) and issubclass(inner, Section)
        found |= leaves(inner) if is_table else {name: field}
    return found


def test_the_published_pages_are_in_step(tmp_path):
    """docs/recipe.md and docs/recipe.schema.json are what the command writes."""
    (tmp_path / "recipe.md").write_text((DOCS / "recipe.md").read_text(encoding="utf-8"))
    write_reference(tmp_path)

    for name in ("recipe.md", "recipe.schema.json"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text(encoding="utf-8"), AGAIN


def test_every_key_has_a_row_with_every_cell():
    """A row a key: its unit if it is a number, default, range, example and meaning."""
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    schema = recipe_schema()
    numbers = {
        name
        for table in schema["$defs"].values()
        for name, body in table["properties"].items()
        if {"integer", "number"} & set(types(body))
    }

    assert {row[0].strip("|` ") for row in rows} == set(leaves(Recipe))
    for key, unit, *others in rows:
        assert bool(unit.strip()) == (key.strip("|` ") in numbers), key
        assert len(others) == 4, key
        assert all(cell.strip() for cell in others), key


def test_the_published_schema_is_one_for_editors():
    """A JSON schema of draft 2020-12 whose titles and descriptions an editor can show."""
    schema = json.loads((DOCS / "recipe.schema.json").read_text(encoding="utf-8"))

    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == recipe_schema()


def test_the_smallest_recipe_of_the_page_is_one():
    """The first TOML block is valid by the published schema."""
    page = (DOCS / "recipe.md").read_text(encoding="utf-8")
    text = page.split("```toml\n")[1].split("```")[0]

    jsonschema.validate(tomllib.loads(text), recipe_schema())


def test_a_page_without_marks_is_left_alone(tmp_path):
    """Nothing is overwritten where the place for the tables is not marked."""
    (tmp_path / "recipe.md").write_text("# mine\n")

    with pytest.raises(UsageError, match="expected the marks"):
        write_reference(tmp_path)

    assert (tmp_path / "recipe.md").read_text() == "# mine\n"
