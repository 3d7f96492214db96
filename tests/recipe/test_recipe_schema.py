"""The recipe: defaults, errors, hash and JSON schema."""

from __future__ import annotations

import tomllib
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from edgeprune.errors import RecipeError
from edgeprune.recipe.schema import Recipe, load_recipe, recipe_hash, recipe_schema
from edgeprune.recipe.table import Section

REPOSITORY = Path(__file__).resolve().parents[2]

MINIMAL = """
[model]
factory = "model.py:build"
[data]
factory = "data.py:load"
[prune]
budget = { keep_fraction = 0.5 }
"""

COMPLETE = """
[model]
factory = "model.py:build"
weights = "dense.safetensors"
input = "2x1x28x28"
[data]
factory = "data.py:load"
[prune]
criterion = "l1"
allocation = "global"
budget = { keep_fraction = 0.4 }
rounds = 3
max_accuracy_drop = 0.02
multiple = 8
seed = 7
exact_only = true
score_samples = 64
keep = ["head.*"]
only = ["body.*", "neck.*"]
fractions = { "neck.*" = 0.25, "body.0.*" = 1 }
min_width = { "*" = 4, "body.*" = 16 }
[repair]
samples = 100
ridge = 0.01
[recover]
epochs = 0.5
final_epochs = 2
learning_rate = 1e-3
weight_decay = 0.0
distillation = 0.5
threads = 1
temperature = 4
[export]
opset = 20
precision = ["fp32"]
[target]
name = "local"
threads = 2
batch = 4
[gates]
accuracy_drop = 0.015
speedup = 2.0
latency_ms = 8
size_ratio = 0.5
size_mib = 1.5
parity = 1e-5
confidence = 0.95
"""


def write(folder: Path, text: str) -> Path:
    """A recipe and the files it names, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.py", "data.py", "dense.safetensors"):
        (folder / name).write_text(f"# {name}\n")
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def keys_of(model: type[Section]) -> set[str]:
    """The dotted keys of every value in a section and its sections."""
    found = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found |= {f"{name}.{key}" for key in keys_of(inner)}
        else:
            found.add(name)
    return found


def _dotted(tables: dict, prefix: str = "") -> list[str]:
    """The dotted keys of every value of a document."""
    found = []
    for key, value in tables.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" not in keys_of(Recipe)
        found += _dotted(value, f"{prefix}{key}.") if inner else [prefix + key]
    return found


def test_defaults_are_the_documented_ones(tmp_path):
    """A recipe of three keys takes the defaults of the recipe's reference."""
    recipe = load_recipe(write(tmp_path, MINIMAL))

    assert recipe.prune.criterion == "l2"
    assert recipe.prune.allocation == "uniform"
    assert recipe.prune.multiple is None
    assert recipe.recover.final_epochs == 0
    assert recipe.export.precision == ("fp32",)
    assert recipe.target.name == "local"
    assert recipe.gates.parity is None
    assert recipe.gates.confidence is None


def test_a_minimum_may_be_one_number_for_all(tmp_path):
    """`min_width = 8` is `{ "*" = 8 }`; by pattern, the table stays as it is."""
    one = load_recipe(write(tmp_path, MINIMAL + "min_width = 8\n"))
    many = load_recipe(write(tmp_path, MINIMAL + 'min_width = { "a.*" = 2 }\n'))

    assert one.prune.min_width == {"*": 8}
    assert many.prune.min_width == {"a.*": 2}


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("min_width = 0", "prune.min_width.*", "expected a value greater than or equal to 1, got"),
        ('min_width = { "a.*" = 1.5 }', "prune.min_width.a.*", "expected an integer, got 1.5"),
        ("min_width = true", "prune.min_width", "expected a table, got True"),
        ('fractions = { "a.*" = 0 }', "prune.fractions.a.*", "expected a value greater than 0"),
        ("fractions = 0.5", "prune.fractions", "expected a table, got 0.5"),
        ('keep = "a.*"', "prune.keep", "expected a list, got 'a.*'"),
        ('only = [""]', "prune.only.0", "got ''"),
    ],
)
def test_a_wrong_selection_is_named_by_its_key(tmp_path, line, key, expected):
    """The key with its pattern, what was expected, and what stands there."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, MINIMAL + line + "\n"))

    assert f"at {key}: " in str(caught.value)
    assert expected in str(caught.value)


def test_every_key_can_be_set(tmp_path):
    """A recipe that sets every key is read with each value where it belongs."""
    recipe = load_recipe(write(tmp_path, COMPLETE))
    written = tomllib.loads(COMPLETE)

    assert recipe.model_dump(mode="json", exclude_none=True) == written
    assert recipe.base_dir == tmp_path
    unset = keys_of(Recipe) - set(_dotted(written))
    assert unset == {f"prune.budget.{k}" for k in ("macs_fraction", "params_fraction", "speedup")}


def test_every_key_is_documented():
    """Each key of the JSON schema has a description that ends as a sentence does."""
    schema = recipe_schema()
    tables = [schema, *schema["$defs"].values()]
    described = {name: body for table in tables for name, body in table["properties"].items()}

    assert set(described) >= {key.rpartition(".")[2] for key in keys_of(Recipe)}
    assert [
        n for n, body in described.items() if not body.get("description", "").endswith(".")
    ] == []


def test_a_recipe_is_frozen(tmp_path):
    """Assigning to a key of a loaded recipe fails."""
    recipe = load_recipe(write(tmp_path, MINIMAL))

    with pytest.raises(ValidationError, match="frozen"):
        recipe.prune.rounds = 2


@pytest.mark.parametrize(
    ("old", "new", "key", "parts"),
    [
        ("keep_fraction", "keep_fracton", "prune.budget.keep_fracton", ["'keep_fraction'"]),
        ("{ keep_fraction = 0.5 }", "{}", "prune.budget", ["exactly one of keep_fraction, macs"]),
        ("= 0.5 }", "= 0.5, speedup = 2.0 }", "prune.budget", ["exactly one of", "speedup"]),
        ('factory = "model.py:build"', 'factory = "net.pt2"', "model.factory", ["net.pt2"]),
        ('factory = "data.py:load"', 'factory = "net.pt2"', "data.factory", ["function"]),
        ('factory = "model.py:build"', "", "model.factory", ["a value", "none"]),
        ("keep_fraction = 0.5", "keep_fraction = 1.5", "prune.budget.keep_fraction", ["1.5", "1"]),
        (
            "keep_fraction = 0.5",
            "keep_fraction = 0",
            "prune.budget.keep_fraction",
            ["greater", "0"],
        ),
        ("{ keep_fraction = 0.5 }", "0.5", "prune.budget", ["a table", "0.5"]),
        ('"data.py:load"', "3", "data.factory", ["a string", "3"]),
        ('"data.py:load"', '"data.py"', "data.factory", ["'data.py'", "function"]),
        ('"data.py:load"', '"date.py:load"', "data.factory", ["a file", "date.py"]),
        ("[prune]", "[prune]\nrounds = 0", "prune.rounds", ["greater than or equal to 1", "got 0"]),
        ("[prune]", "[prune]\nrounds = true", "prune.rounds", ["integer", "True"]),
        ("[prune]", '[prune]\nrounds = "2"', "prune.rounds", ["integer", "'2'"]),
        ("[prune]", "[prune]\nrounds = 2.0", "prune.rounds", ["integer", "2.0"]),
        ("= 0.5 }", '= "0.5" }', "prune.budget.keep_fraction", ["number", "'0.5'"]),
        ("[prune]", "[prune]\nrounds = 2.5", "prune.rounds", ["integer", "2.5"]),
        ("[prune]", "[prune]\nround = 2", "prune.round", ["'round'", "Did you mean 'rounds'?"]),
        ("[prune]", '[prune]\nallocation = "even"', "prune.allocation", ["'uniform' or 'global'"]),
        ("[prune]", "[gate]\nx = 1\n[prune]", "gate", ["Did you mean 'gates'?"]),
        ("[prune]", '[export]\nprecision = ["int8"]\n[prune]', "export.precision.0", ["'fp32'"]),
        ("[data]", 'input = "2y3"\n[data]', "model.input", ["2y3", "sizes joined by 'x'"]),
        ("[data]", 'weights = "w.pt"\n[data]', "model.weights", ["a file", "w.pt", "not there"]),
    ],
)
def test_a_mistake_is_named_with_key_expected_and_got(tmp_path, old, new, key, parts):
    """The error says which key of which file is wrong, what was expected and what stands there."""
    path = write(tmp_path, MINIMAL.replace(old, new, 1))

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    message = str(caught.value)
    assert caught.value.where == key
    assert [part for part in ["recipe.toml", key, "expected", *parts] if part not in message] == []


def test_an_unknown_key_beside_a_missing_one_names_both(tmp_path):
    """A misspelt key is reported with its nearest name, and the key it leaves unset too."""
    path = write(tmp_path, MINIMAL.replace('factory = "data', 'factori = "data'))

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    assert "at data.factory: expected a value, got none" in str(caught.value)
    assert "at data.factori: " in str(caught.value)
    assert "Did you mean 'factory'?" in str(caught.value)


@pytest.mark.parametrize(("text", "part"), [("[model\n", "line 1"), ("a = \xff", "line 1")])
def test_broken_toml_names_the_line(tmp_path, text, part):
    """A file that is not TOML is refused with the parser's line."""
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=part):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path):
    """The path of a recipe that is not there stands in the error."""
    with pytest.raises(RecipeError, match="gone.toml"):
        load_recipe(tmp_path / "gone.toml")


def test_a_folder_in_place_of_a_recipe_is_named(tmp_path):
    """A folder has no line to mend: the message says what it is; exit code 2."""
    with pytest.raises(RecipeError, match=r"expected a \.toml file, got a folder\.") as caught:
        load_recipe(tmp_path)
    assert caught.value.exit_code == 2
    assert "line" not in str(caught.value).replace(str(tmp_path), "")
    with pytest.raises(RecipeError, match=r"expected a \.toml file, got .*too long"):
        load_recipe(tmp_path / ("n" * 300))


def test_hash_ignores_place_comments_and_order(tmp_path):
    """The same values and the same named files give the same hash anywhere."""
    reordered = """
    # a comment
    [prune]
    budget = { keep_fraction = 0.50 }
    [data]
    factory = "data.py:load"
    [model]
    factory = "model.py:build"
    """
    one = load_recipe(write(tmp_path / "one", MINIMAL))
    two = load_recipe(write(tmp_path / "two", reordered))

    assert recipe_hash(one) == recipe_hash(two)


def test_hash_covers_values_and_named_files(tmp_path):
    """A changed value changes the hash, and so does a changed byte of a named file."""
    path = write(tmp_path, COMPLETE)
    hashes = {recipe_hash(load_recipe(path))}
    path.write_text(COMPLETE.replace("rounds = 3", "rounds = 4"))
    hashes.add(recipe_hash(load_recipe(path)))
    for name in ("model.py", "data.py", "dense.safetensors"):
        (tmp_path / name).write_text("changed")
        hashes.add(recipe_hash(load_recipe(path)))

    assert len(hashes) == 5


@pytest.mark.parametrize("text", [MINIMAL, COMPLETE])
def test_json_schema_accepts_what_the_recipe_accepts(text):
    """An independent validator takes valid recipes by the published schema."""
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    jsonschema.validate(tomllib.loads(text), recipe_schema())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("keep_fraction = 0.5", "keep_fraction = 1.5"),
        ("[prune]", "[prune]\nrounds = 0"),
        ("[prune]", "[prune]\nround = 2"),
        ("= 0.5 }", "= 0.5, speedup = 2.0 }"),
        ("{ keep_fraction = 0.5 }", "{}"),
        ('factory = "data.py:load"', ""),
    ],
)
def test_json_schema_refuses_what_the_recipe_refuses(old, new):
    """The independent validator rejects a wrong range, an unknown and a missing key."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(MINIMAL.replace(old, new, 1)), recipe_schema())


def test_shipped_recipes_are_valid():
    """Every recipe under samples/ loads, and validates against the JSON schema."""
    paths = sorted((REPOSITORY / "samples").glob("*/recipe*.toml"))

    assert paths
    for path in paths:
        load_recipe(path)
        jsonschema.validate(tomllib.loads(path.read_text(encoding="utf-8")), recipe_schema())
