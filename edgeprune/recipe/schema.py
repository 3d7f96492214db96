"""The recipe as a whole: read from a TOML file, checked, hashed. No torch.

Paths in a recipe are relative to its file; unknown keys are errors.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, PrivateAttr, ValidationError

from edgeprune.errors import RecipeError, UsageError
from edgeprune.recipe.complaint import complaints
from edgeprune.recipe.factory import archive_file, onnx_file, parse_factory
from edgeprune.recipe.pruning import BudgetSection, PruneSection
from edgeprune.recipe.sections import (
    DataSection,
    ExportSection,
    GatesSection,
    ModelSection,
    RecoverSection,
    RepairSection,
    TargetSection,
)
from edgeprune.recipe.table import Section


class Origin(NamedTuple):
    """Where a recipe was read from; handed to the validation as its context."""

    path: Path


class Recipe(Section):
    """What to prune, how far, and what the result must meet."""

    model: ModelSection = Field(description="The trained network.")
    data: DataSection = Field(description="The splits, the metric and the loss.")
    prune: PruneSection = Field(description="What to remove, in how many rounds.")
    repair: RepairSection = Field(
        default=RepairSection(), description="Least squares after each removal, before training."
    )
    recover: RecoverSection = Field(
        default=RecoverSection(), description="Training after each removal."
    )
    export: ExportSection = Field(default=ExportSection(), description="The ONNX file.")
    target: TargetSection = Field(default=TargetSection(), description="The device.")
    gates: GatesSection = Field(default=GatesSection(), description="What the build must meet.")

    _path: Path = PrivateAttr()

    def model_post_init(self, context: object) -> None:
        """Remember the file; a recipe made in Python counts as one in the current directory."""
        self._path = context.path if isinstance(context, Origin) else Path.cwd() / "recipe.toml"

    @property
    def path(self) -> Path:
        """The file that this recipe was read from, absolute."""
        return self._path

    @property
    def base_dir(self) -> Path:
        """The folder that the recipe's paths are relative to."""
        return self._path.parent


def recipe_schema() -> dict[str, object]:
    """The JSON schema of a recipe (draft 2020-12), for editors: `#:schema` in the TOML file."""
    schema: dict[str, object] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
    }
    schema["title"] = "edgeprune recipe"
    tables = schema["$defs"]
    if isinstance(tables, dict):
        # A validator of the model asks for exactly one budget; the schema says it by counting.
        tables[BudgetSection.__name__] |= {"minProperties": 1, "maxProperties": 1}
    return schema


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe from a TOML file and check that the files it names are there.

    Raises RecipeError naming the file, the key, what was expected and what stands there.
    """
    path = Path(path).absolute()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"reading the recipe at {path}: expected a TOML file, got none. Check the path.",
            where=str(path),
        ) from error
    except OSError as error:
        got = "a folder" if isinstance(error, IsADirectoryError) else error.strerror
        raise RecipeError(
            f"reading the recipe at {path}: expected a .toml file, got {got}. Give the path of a "
            f"recipe that can be read.",
            where=str(path),
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(
            f"reading the recipe at {path}: expected a TOML file in UTF-8, got: {error}. "
            f"Mend that line.",
            where=str(path),
        ) from error
    try:
        recipe = Recipe.model_validate(tables, context=Origin(path))
    except ValidationError as error:
        first, *rest = complaints(error, Recipe)
        more = "".join(f"\n  also {complaint}" for complaint in rest)
        raise RecipeError(
            f"reading the recipe {path.name} {first}{more}", where=first.key
        ) from None
    for key, file in named_files(recipe).items():
        if not file.is_file():
            raise RecipeError(
                f"reading the recipe {path.name} at {key}: expected a file, got {file}, which is "
                f"not there. Give its path relative to {path.parent}.",
                where=key,
            )
    return recipe


def named_files(recipe: Recipe) -> dict[str, Path]:
    """The files that a recipe names, by key: the factories' files and the weights."""
    files: dict[str, Path] = {}
    for key, text in (
        ("model.factory", recipe.model.factory),
        ("data.factory", recipe.data.factory),
    ):
        if key == "model.factory":
            graph = archive_file(text, recipe.base_dir) or onnx_file(text, recipe.base_dir)
            if graph is not None:
                files[key] = graph
                continue
        try:
            file = parse_factory(text).file(recipe.base_dir)
        except UsageError as error:
            raise RecipeError(
                f"{error} (recipe {recipe.path.name}, key {key})", where=key
            ) from None
        if file is not None:
            files[key] = file
    if recipe.model.weights is not None:
        files["model.weights"] = recipe.base_dir / recipe.model.weights
    return files


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) over every value of the recipe and the content of the files it names.

    Independent of where the recipe lies, of comments and of the order of keys. What those files
    import or read in turn is not covered.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode())
    for key, file in sorted(named_files(recipe).items()):
        digest.update(f"\n{key} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()
