"""One captured graph to an ONNX model in memory: torch's exporter, then names that users know."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import ShapesCollection
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from edgeprune.errors import EnvironmentFailed, ModelNotSupported
from edgeprune.exporting.forms import forms
from edgeprune.exporting.layouts import settle_
from edgeprune.exporting.names import input_names, output_names, unique
from edgeprune.graph.capture import Captured, is_dynamic
from edgeprune.graph.inputs import Inputs, clone, is_batched
from edgeprune.graph.operators import cell_parameters
from edgeprune.graph.quiet import quietly

aten = torch.ops.aten

BATCH = "batch"
"""Symbol of the dynamic first dim in every file."""

_NODE = re.compile(r"translating node %?(?P<name>\w+).*?target=(?P<op>[\w.]+)", re.DOTALL)
_OP = re.compile(r"OpOverload\(op='(?P<op>[\w.]+)', overload='(?P<overload>\w+)'\)")
_SYMBOL = "Unsupported attribute type"
# What torch writes to debug its exporter: it holds paths of the user's machine and outweighs the
# graph itself (mobilenet_v3_small: 90 kB of text).
_DEBUG_PREFIXES = ("pkg.torch.", "pkg.onnxscript.", "namespace")


def translate(captured: Captured, opset: int) -> ir.Model:
    """The ONNX model of a captured graph in eval mode, optimised, with the user's names.

    Raises ModelNotSupported naming the node and op that have no ONNX form.
    """
    _require_forms(captured)
    program = reexport(captured)
    with quietly() as said:
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=True,
                opset_version=opset,
                verbose=False,
                custom_translation_table=forms(),
            )
        except ImportError as error:
            raise EnvironmentFailed(
                f"exporting at torch.onnx: expected its package {error.name}, got none. "
                f"Install it with: pip install onnxscript"
            ) from error
        except Exception as error:  # the exporter raises anything, decompositions included
            raise _not_translatable(error, captured, said.tail()) from error
    if exported is None:
        raise ModelNotSupported(
            "exporting at torch.onnx: expected a model, got none. Report this with the model."
        )
    model: ir.Model = exported.model
    if model.opset_imports.get("") != opset:
        raise ModelNotSupported(
            f"exporting at opset {opset}: expected a model of that opset, got "
            f"{model.opset_imports.get('')} ({said.tail()}). Set opset = 20 in [export].",
            where="opset",
        )
    drop_debug_text_(model)
    rename_(model, program, captured)
    return model


def _require_forms(captured: Captured) -> None:
    """Refuse what torch's exporter writes wrongly: it drops the projection of an LSTM.

    And an output that is no tensor, which it does not name.
    """
    for node in captured.module.graph.nodes:
        if node.op == "output":
            for leaf in pytree.tree_leaves(node.args[0]):
                if leaf is not None and not isinstance(leaf, fx.Node):
                    raise ModelNotSupported(
                        f"exporting at the model's outputs: expected tensors, got the constant "
                        f"{leaf!r}. Return it as a tensor, or leave it out.",
                        where="outputs",
                    )
        if node.target is aten.lstm.input:
            biases, layers, both = node.args[3], node.args[4], node.args[7]
            plain = (4 if biases else 2) * layers * (2 if both else 1)
            if len(cell_parameters(node)) != plain:
                raise ModelNotSupported(
                    f"exporting at {node.name} ({node.meta.get('where')}): expected an LSTM that "
                    "ONNX has, got one with a projection. Set proj_size=0 and put a linear layer "
                    "behind it.",
                    where=node.name,
                )


def reexport(captured: Captured) -> ExportedProgram:
    """torch.export of the captured graph: every shape is computed anew, also after surgery."""
    module = copy.deepcopy(captured.module).eval()
    settle_(module, captured.facts)
    inputs = clone(captured.inputs)
    failures: list[str] = []
    for dim in (Dim.DYNAMIC, Dim.AUTO, None) if captured.dynamic_batch else (None,):
        shapes = None if dim is None else batch_shapes(module, inputs, dim)
        try:
            program = torch.export.export(
                module, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False
            )
        except Exception as error:  # torch.export raises anything
            failures.append(f"{type(error).__name__}: {str(error).strip()[:400]}")
            last = error
        else:
            # A first dim that the operators fix (time steps before samples) is not a free one.
            if dim is not Dim.AUTO or is_dynamic(program):
                return program
    raise ModelNotSupported(
        f"exporting at the captured graph: expected torch.export to take it, got "
        f"{' | '.join(dict.fromkeys(failures))}. "
        + ("Try dynamic_batch=False." if captured.dynamic_batch else "Report this with the model.")
    ) from last


def batch_shapes(module: torch.nn.Module, inputs: Inputs, dim: object) -> dict[str, object]:
    """`dim` as the first dim of every batched tensor, in the form torch.export asks for."""
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in pytree.tree_leaves((inputs.args, inputs.kwargs)):
        if is_batched(leaf, inputs.batch_size):
            shapes[leaf] = {0: dim}
    result: dict[str, object] = shapes.dynamic_shapes(  # type: ignore[no-untyped-call]
        module, inputs.args, inputs.kwargs
    )
    return result


def rename_(model: ir.Model, program: ExportedProgram, captured: Captured) -> None:
    """Give inputs, outputs and the batch symbol their names in place; others step aside."""
    signature = program.graph_signature
    spec_in, spec_out = program.call_spec.in_spec, program.call_spec.out_spec
    if spec_in is None or spec_out is None:
        raise ModelNotSupported(
            "naming the inputs at torch.export: expected the structure of the call, got none. "
            "Report this with the model."
        )
    all_inputs = input_names(captured.module.forward, spec_in)
    user_inputs = [s for s in signature.input_specs if s.kind is InputKind.USER_INPUT]
    inputs = _of_tensors(all_inputs, [spec.arg for spec in user_inputs])
    user_outputs = [s for s in signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    all_outputs = output_names(spec_out, inputs)
    outputs = _of_tensors(all_outputs, [spec.arg for spec in user_outputs])
    for kind, values, names in (
        ("inputs", model.graph.inputs, inputs),
        ("outputs", model.graph.outputs, outputs),
    ):
        if len(values) != len(names):
            raise ModelNotSupported(
                f"naming the {kind} at the ONNX graph: expected {', '.join(names)}, got "
                f"{', '.join(str(value.name) for value in values)}. Return every tensor once."
            )
    _give_names_(model, [*model.graph.inputs, *model.graph.outputs], [*inputs, *outputs])
    _name_batch_(model)


def _of_tensors(names: Sequence[str], arguments: Sequence[object]) -> list[str]:
    pairs = zip(names, arguments, strict=True)
    return [name for name, argument in pairs if not isinstance(argument, ConstantArgument)]


def _give_names_(model: ir.Model, values: Sequence[ir.Value], names: Sequence[str]) -> None:
    """Rename; a value that holds a wanted name, such as a weight called `output`, gets another."""
    others = [value for value in _all_values(model) if not any(value is v for v in values)]
    taken = [*names, *(str(value.name) for value in others if value.name not in names)]
    for value in others:
        if value.name in names:
            value.name = unique([str(value.name)], taken)[0]
            taken.append(value.name)
    for index, value in enumerate(values):
        value.name = f"{names[index]}.{index}.renamed"  # two values may swap their names
    for value, name in zip(values, names, strict=True):
        value.name = name


def _all_values(model: ir.Model) -> list[ir.Value]:
    found = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        found.extend(node.outputs)
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                found.extend(
                    (*attribute.as_graph().inputs, *attribute.as_graph().initializers.values())
                )
    return list({id(value): value for value in found}.values())


def _name_batch_(model: ir.Model) -> None:
    """`s77` becomes `batch`, `4*s77` becomes `4*batch`, wherever a shape is written."""
    symbols = {
        str(value.shape[0].value)
        for value in model.graph.inputs
        if value.shape and isinstance(value.shape[0], ir.SymbolicDim)
    }
    if not symbols:
        return
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(symbols)))})\b")
    for value in _all_values(model):
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                ir.SymbolicDim(pattern.sub(BATCH, str(dim.value)))
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape
            ]
        )


def drop_debug_text_(model: ir.Model) -> None:
    """Remove what the exporter wrote for its own debugging; metadata of the model stays."""
    graph = model.graph
    holders = [graph.metadata_props]
    holders.extend(value.metadata_props for value in _all_values(model))
    for node in graph.all_nodes():
        node.doc_string = None
        holders.append(node.metadata_props)
    for properties in holders:
        for key in [key for key in properties if key.startswith(_DEBUG_PREFIXES)]:
            del properties[key]


def _not_translatable(error: Exception, captured: Captured, said: str) -> ModelNotSupported:
    """Name the node, its op and its line: the first that torch's chain of errors tells."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    text = "\n".join(str(link) for link in reversed(chain))
    node, op = _NODE.search(text), _OP.search(text)
    name = node["name"] if node else None
    op_name = node["op"] if node else f"{op['op']}.{op['overload']}" if op else "an op"
    places = {n.name: str(n.meta.get("where", "")) for n in captured.module.graph.nodes}
    line = places.get(name or "", "")
    reason = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
    where = " ".join(filter(None, (name, f"({line})" if line else ""))) or "the graph"
    # An attribute that grows with the batch (the groups of a convolution) has no place in a file.
    fixed = "Set dynamic_batch=False" if captured.dynamic_batch and _SYMBOL in text else ""
    return ModelNotSupported(
        f"exporting at {where}: expected an ONNX form of {op_name}, got {type(chain[-1]).__name__}"
        f": {reason[0][:300]}{f' [{said[:300]}]' if said else ''}. "
        f"{f'{fixed}, write' if fixed else 'Write'} that line with other ops, or give torch.onnx "
        "a translation of the op.",
        where=name,
    )
