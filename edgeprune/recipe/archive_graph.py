"""The graph inside a `.pt2` archive, as JSON, checked before torch makes a program of it.

torch evaluates the text of symbolic sizes, looks operators up by attribute, and compiles names of
values and inputs as Python source. Here every text of the document must be of a kind that cannot
carry code; what only informs (guards, notes) is left out.
"""

from __future__ import annotations

import json
import re

import torch

# Names of values, parameters, devices, versions: nothing that calls, quotes or assigns.
_PLAIN = re.compile(r"[\w.+\- ]*")

# Text that torch keeps as text, and only quotes.
_FREE_TEXT = ("as_string", "as_strings", "stack_trace", "nn_module_stack")

# What a person wants to know of a node; the rest is for tools, and some of it is looked up.
_KEPT_NOTES = ("stack_trace", "nn_module_stack")

_NAMESPACES = ("aten", "prims", "torchvision")
_SIZE_ARITHMETIC = re.compile(
    r"_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|or_|pos|pow"
    r"|rshift|sub|truediv)|math\.(ceil|floor|sqrt|trunc)"
    r"|torch\.sym_(float|fresh_size|int|ite|max|min|not|sqrt|sum)"
)

_EXPRESSION = re.compile(r"[\w\s(),='.+\-*/%<>!&|~]*")
_QUOTED = re.compile(r"'[\w.+\-]*'")
_WORD = re.compile(r"[^\W\d]\w*")
_DOT_TO_NAME = re.compile(r"\.\s*[^\W\d]")
_SYMBOL = re.compile(r"[a-z]+\d+")
_SYMPY = re.compile(
    r"Abs|Add|And|CeilDiv|CeilToInt|CleanDiv|Equality|Eq|FloatPow|"
    r"FloatTrueDiv|Float|FloorDiv|FloorToInt|Ge|GreaterThan|Gt|Identity|"
    r"IntTrueDiv|Integer|IsNonOverlappingAndDenseIndicator|LShift|Le|LessThan|Lt|"
    r"Max|Min|Mod|ModularIndexing|Mul|Ne|Not|Or|Piecewise|Pow|PowByNatural"
    r"|PythonMod|RShift|Rational|RoundDecimal|RoundToInt|StrictGreaterThan|"
    r"StrictLessThan|Symbol|ToFloat|TruncToFloat|TruncToInt|Unequality|Where|"
    r"ceiling|floor|oo|True|False|None|integer|positive|nonnegative|negative"
    r"|nonpositive|nonzero|real|precision|finite|extended_real|evaluate"
)

_STRUCTURES = (
    None,
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
    "torch.fx.immutable_collections.immutable_list",
    "torch.fx.immutable_collections.immutable_dict",
)


def checked_graph(content: bytes) -> bytes:
    """The document again, its notes and guards left out; ValueError names what is suspicious."""
    try:
        document: object = json.loads(content)
        return json.dumps(_checked("", document)).encode()
    except RecursionError as error:
        raise ValueError("a document nested without end") from error


def is_plain(text: object) -> bool:
    """Whether a value is text that cannot carry code: letters, digits, `_ . + -` and spaces."""
    return isinstance(text, str) and _PLAIN.fullmatch(text) is not None


def _checked(key: str, value: object) -> object:
    """The value under `key`, every text in it checked, what is not needed left out."""
    if key == "guards_code":
        return []
    if key in ("metadata", "treespec_namedtuple_fields") and isinstance(value, dict):
        return {note: text for note, text in value.items() if note in _KEPT_NOTES}
    if isinstance(value, dict):
        for name in value:
            _require(is_plain(name), "a plain name", name)
        return {name: _checked(name, member) for name, member in value.items()}
    if isinstance(value, list):
        return [_checked(key, member) for member in value]
    if isinstance(value, str) and key == "out_spec":
        value = _with_plain_outputs(value)
    if isinstance(value, str):
        _check_text(key, value)
    return value


def _check_text(key: str, text: str) -> None:
    if key in _FREE_TEXT:
        return
    if key == "target":
        _check_operator(text)
    elif key == "expr_str":
        _require(_is_size_expression(text), "an expression of sizes", text)
    elif key in ("in_spec", "out_spec"):
        _check_structure(text)
    else:
        _require(is_plain(text), "a plain name", text)


def _check_operator(target: str) -> None:
    """An operator of torch without access to files, or arithmetic of sizes."""
    if _SIZE_ARITHMETIC.fullmatch(target):
        return
    parts = target.split(".")
    known = len(parts) == 5 and parts[:2] == ["torch", "ops"] and parts[2] in _NAMESPACES
    _require(known, f"an operator of {', '.join(_NAMESPACES)}", target)
    packet = getattr(getattr(torch.ops, parts[2]), parts[3], None)
    operator = getattr(packet, parts[4], None)
    if not isinstance(operator, torch._ops.OpOverload):
        raise ValueError(f"an operator that this torch does not have: {target[:80]}")
    touches_files = any(argument.name == "filename" for argument in operator._schema.arguments)
    _require(not touches_files, "an operator without access to files", target)


def _is_size_expression(text: str) -> bool:
    if not _EXPRESSION.fullmatch(text):
        return False
    bare = _QUOTED.sub("", text)
    if "'" in bare or _DOT_TO_NAME.search(bare):
        return False
    return all(_SYMPY.fullmatch(word) or _SYMBOL.fullmatch(word) for word in _WORD.findall(bare))


def _with_plain_outputs(text: str) -> str:
    """The structure of outputs with every class of named fields as a dict of the same names.

    So come the outputs of transformers and dataclasses; the class itself is never looked up.
    """
    try:
        version, tree = json.loads(text)
    except (ValueError, TypeError):
        return text  # refused as it stands
    queue: list[object] = [tree]
    while queue:
        node = queue.pop()
        if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
            continue
        names = _field_names(node.get("context"))
        if node.get("type") not in _STRUCTURES and len(names) == len(node["children_spec"]) > 0:
            node |= {"type": "builtins.dict", "context": json.dumps(names)}
        queue += node["children_spec"]
    return json.dumps([version, tree])


def _field_names(context: object) -> list[str]:
    """The fields of a class: its context is their names, or (names, names of empty ones)."""
    try:
        found: object = json.loads(context) if isinstance(context, str) else context
    except ValueError:
        return []
    if isinstance(found, list) and len(found) == 2 and all(isinstance(n, list) for n in found):
        found = found[0]
    if not isinstance(found, list) or len(set(map(str, found))) != len(found):
        return []
    return [name for name in found if is_plain(name)]


def _check_structure(text: str) -> None:
    """How inputs or outputs are nested: plain containers with plain keys."""
    try:
        _, tree = json.loads(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"an unreadable structure of inputs: {text[:80]!r}") from error
    queue: list[object] = [tree]
    while queue:
        node = queue.pop()
        if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
            raise ValueError(f"an unreadable structure of inputs: {str(node)[:80]!r}")
        kind = node.get("type")
        _require(kind in _STRUCTURES, "tuples, lists and dicts as inputs and outputs", kind)
        context: object = node.get("context")
        names: object = json.loads(context) if isinstance(context, str) else context
        for name in names if isinstance(names, list) else [names]:
            plain = name is None or isinstance(name, int) or is_plain(name)
            _require(plain, "plain keys of inputs and outputs", name)
        queue += node["children_spec"]


def _require(holds: bool, what: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{str(got)[:80]!r} in place of {what}")
