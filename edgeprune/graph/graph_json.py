"""A captured graph as JSON and back: what `load` needs to give a model back without pickles.

A `.pt2` file would do, but `torch.export.load` runs code that a hostile file carries. Here a file
can name only operators of ATen and of the packages listed here, arithmetic on sizes, and tensors of
the two safetensors files beside it; anything else is refused (docs/decisions, bundle model).
"""

from __future__ import annotations

import importlib.util
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from edgeprune.errors import ModelNotSupported, UsageError
from edgeprune.graph.outputs import without_classes

Specs: TypeAlias = tuple[pytree.TreeSpec, pytree.TreeSpec]
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

SCHEMA = 1
_NAMESPACES = ("aten", "torchvision")
# Operators that exist once a module is imported, by the module.
_BROUGHT = {"transformers.grouped_mm_fallback.default": "transformers.integrations.moe"}
_META = ("module", "where", "scales")
_WORD = re.compile(r"[A-Za-z0-9_]+")
# A ModuleDict may have keys such as `3x3-a`; fx writes them between double quotes.
_ATTRIBUTE = re.compile(r"[^\"'\\\x00-\x1f]+")
# The only operator of these that opens a file.
_REFUSED_OPS = ("aten.from_file.default", "aten.from_file.out")
_ARITHMETIC = (
    *("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow"),
    *("eq", "ne", "lt", "le", "gt", "ge"),
)
_FUNCTIONS: dict[str, Callable[..., object]] = {
    f"operator.{name}": getattr(operator, name) for name in _ARITHMETIC
} | {
    f"torch.{name}": getattr(torch, name)
    for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_WORDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def graph_to_json(graph: fx.Graph, *, pickled: bool = False) -> str:
    """The graph, its call and output structure as JSON text, one node a line.

    Outputs of a class of the user's become dicts of its fields, which need no code to be read.

    pickled: the text goes into a pickle, which runs code anyway, beside `specs_of(graph)`: the
    structure is left to those, and operators of the user's (of `torch.library`) are written too.
    Raises ModelNotSupported for an operator or argument that has no form here.
    """
    specs: list[Json] = [None, None]
    if not pickled:
        try:
            given, gives = specs_of(graph)
            specs = [_spec_to_json(spec) for spec in (given, without_classes(gives))]
        except Exception as error:  # a type of the user's that pytree cannot name
            raise _unwritable("the call", "tuples, lists and dicts", str(error)) from error
    head: dict[str, Json] = {
        "schema": SCHEMA,
        "arguments": list(_call_of(graph).orig_args),
        "in_spec": specs[0],
        "out_spec": specs[1],
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    nodes = ",\n".join(f"    {json.dumps(_node_to_json(node, pickled))}" for node in graph.nodes)
    return "\n".join(["{", *lines, f'  "nodes": [\n{nodes}\n  ]', "}\n"])


def _spec_to_json(spec: pytree.TreeSpec) -> Json:
    text = pytree.treespec_dumps(spec)
    if pytree.treespec_loads(text) != spec:
        raise ValueError(f"{spec}, whose keys JSON cannot hold")
    structure: Json = json.loads(text)
    return structure


def specs_of(graph: fx.Graph) -> Specs:
    """The structure of the inputs and of the outputs of a captured graph."""
    info = _call_of(graph)
    return info.in_spec, cast(pytree.TreeSpec, info.out_spec)


def _call_of(graph: fx.Graph) -> _PyTreeInfo:
    codegen = graph._codegen
    info = codegen.pytree_info if isinstance(codegen, _PyTreeCodeGen) else None
    if info is None or info.out_spec is None:
        raise _unwritable("the call", "the structure of inputs and outputs", type(codegen).__name__)
    return info


def graph_from_json(
    text: str, *, where: str = "graph.json", specs: Specs | None = None
) -> fx.Graph:
    """The graph that `graph_to_json` wrote; UsageError for any other text.

    specs: for text that came with a pickle, its `specs_of`.
    """
    graph = fx.Graph()
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}")
        nodes: dict[str, fx.Node] = {}
        for row in data["nodes"]:
            nodes[row["name"]] = _node_from_json(graph, row, nodes, specs is not None)
        arguments = [_identifier(name) for name in data["arguments"]]
        given, gives = specs or (
            pytree.treespec_loads(json.dumps(data[key])) for key in ("in_spec", "out_spec")
        )
        graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(arguments, given, gives)))
        graph.lint()
    except UsageError:
        raise
    except Exception as error:  # JSON, keys, pytree and fx each raise their own
        raise UsageError(
            f"reading the graph at {where}: expected what edgeprune wrote, got "
            f"{type(error).__name__}: {error}. Make the bundle again.",
            where=where,
        ) from error
    return graph


def _node_to_json(node: fx.Node, any_operator: bool) -> dict[str, Json]:
    row: dict[str, Json] = {"op": node.op, "name": node.name}
    row["target"] = str(node.target)
    if node.op == "call_function":
        row["target"] = _function_name(node, any_operator)
    elif node.op not in ("placeholder", "get_attr", "output"):
        raise _unwritable(node.name, "a call of an operator", node.op)
    row["args"] = [_value_to_json(argument, node.name) for argument in node.args]
    if node.kwargs:
        row["kwargs"] = {k: _value_to_json(v, node.name) for k, v in node.kwargs.items()}
    meta: dict[str, Json] = {k: str(node.meta[k]) for k in _META if node.meta.get(k)}
    if meta:
        row["meta"] = meta
    return row


def _function_name(node: fx.Node, any_operator: bool) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        if any_operator or _is_allowed(name):
            return name
    elif callable(target) and target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[target]
    raise _unwritable(node.name, f"an operator of {' or '.join(_NAMESPACES)}", str(target))


def _is_allowed(name: str) -> bool:
    known = name.partition(".")[0] in _NAMESPACES or name in _BROUGHT
    return known and name not in _REFUSED_OPS


def _value_to_json(value: object, where: str) -> Json:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, complex):
        return {"complex": [_value_to_json(value.real, where), _value_to_json(value.imag, where)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for word, kind in _WORDS.items():
        if isinstance(value, kind):
            return {word: str(value).removeprefix("torch.")}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return {"slice": [_value_to_json(part, where) for part in parts]}
    if isinstance(value, list):
        return [_value_to_json(item, where) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_value_to_json(item, where) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[str(k), _value_to_json(v, where)] for k, v in value.items()]}
    raise _unwritable(where, "numbers, text and values of the graph", type(value).__name__)


def _node_from_json(
    graph: fx.Graph, row: Mapping[str, Json], nodes: Mapping[str, fx.Node], any_operator: bool
) -> fx.Node:
    op, name, target = str(row["op"]), str(row["name"]), str(row["target"])
    if op not in ("placeholder", "get_attr", "call_function", "output"):
        raise ValueError(f"op {op} of node {name}")
    _identifier(name)
    if op == "get_attr" and not _ATTRIBUTE.fullmatch(target):
        raise ValueError(f"attribute {target!r}")
    if op in ("placeholder", "output"):
        _identifier(target)
    args = tuple(_value_from_json(value, nodes) for value in cast("list[Json]", row["args"]))
    kwargs = {
        _identifier(key): _value_from_json(value, nodes)
        for key, value in cast("dict[str, Json]", row.get("kwargs", {})).items()
    }
    node = graph.create_node(
        op,
        _function(target, any_operator) if op == "call_function" else target,
        cast("tuple[fx.node.Argument, ...]", args),
        cast("dict[str, fx.node.Argument]", kwargs),
        name,
    )
    if node.name != name:
        raise ValueError(f"node name {name}")
    meta = cast("dict[str, Json]", row.get("meta", {}))
    node.meta.update({"module": "", "where": ""} | {k: str(meta[k]) for k in _META if k in meta})
    return node


def _identifier(text: str) -> str:
    """A word of letters, digits and _: names become Python source when fx compiles the graph."""
    if not _WORD.fullmatch(text):
        raise ValueError(f"name {text!r}")
    return text


def _function(name: str, any_operator: bool) -> Callable[..., object]:
    """An operator by its name; nothing that is not an operator can be reached by any name."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    parts = name.split(".")
    if len(parts) == 3 and (any_operator or _is_allowed(name)):
        if name in _BROUGHT and importlib.util.find_spec(parts[0]) is not None:
            importlib.import_module(_BROUGHT[name])
        packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
        overload = getattr(packet, parts[2], None) if _is_packet(packet) else None
        if isinstance(overload, torch._ops.OpOverload):
            return overload
    raise UsageError(
        f"reading the graph at {name}: expected an operator that is there, of "
        f"{' or '.join(_NAMESPACES)}, got another name. Load the model with the packages that "
        "made it, the module of your own operators imported.",
        where=name,
    )


def _is_packet(value: object) -> bool:
    return isinstance(value, torch._ops.OpOverloadPacket)


def _value_from_json(value: Json, nodes: Mapping[str, fx.Node]) -> object:
    if isinstance(value, list):
        return [_value_from_json(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "node":
        return nodes[str(content)]
    if tag == "float":
        return float(str(content))
    if tag == "device":
        return torch.device(str(content))
    if tag in _WORDS:
        word: object = getattr(torch, str(content))
        if not isinstance(word, _WORDS[tag]):
            raise ValueError(f"{tag} {content}")
        return word
    items = [_value_from_json(item, nodes) for item in cast("list[Json]", content)]
    if tag == "tuple":
        return tuple(items)
    if tag == "slice":
        return slice(*items)
    if tag == "complex":
        return complex(cast(float, items[0]), cast(float, items[1]))
    if tag == "dict":
        return {cast("list[str]", pair)[0]: cast("list[object]", pair)[1] for pair in items}
    raise ValueError(f"tag {tag}")


def _unwritable(where: str, expected: str, got: str) -> ModelNotSupported:
    return ModelNotSupported(
        f"writing the graph at {where}: expected {expected}, got {got}. The model works and can be "
        f"exported; `edgeprune.load` cannot give it back.",
        where=where,
    )
