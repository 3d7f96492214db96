"""A captured model on disk, without pickles: `graph.json` and safetensors, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.graph.graph_json import graph_from_json, graph_to_json
from edgeprune.graph.module import CapturedModule
from edgeprune.graph.provenance import keep_only_provenance

GRAPH = "graph.json"
WEIGHTS = "weights.safetensors"
CONSTANTS = "constants.safetensors"
_KINDS = "edgeprune"


def load(bundle: Path | str) -> nn.Module:
    """The pruned model of a bundle, in eval mode on the CPU.

    It needs neither the user's code nor the dense model, and runs nothing that the bundle brings:
    the graph is a list of ATen operators, the tensors are safetensors. Called, trained, pruned
    again and exported like `Pruned.model`. The same model comes from the user's own dense one:
    `shrink(analyze(dense, args), read_plan(plan_json))`, then `load_state_dict` of the weights.

    Raises UsageError for a folder without a graph or one that does not fit its tensors.
    """
    folder = Path(bundle)
    graph_text = _text(folder / GRAPH)
    weights, kinds = _tensors(folder / WEIGHTS)
    constants, _ = _tensors(folder / CONSTANTS) if (folder / CONSTANTS).exists() else ({}, {})
    graph = graph_from_json(graph_text, where=str(folder / GRAPH))
    root = _tree(weights, constants, kinds)
    for node in graph.nodes:
        if node.op == "get_attr":
            _require_attribute(root, str(node.target), folder)
    keep_only_provenance(graph)
    module = CapturedModule(root, graph)
    module.tables = tuple(str(name) for name in kinds.get("tables", []) if name in constants)
    return module.eval()


def save(module: CapturedModule, folder: Path) -> None:
    """Write graph, weights (the state dict, tied names in full) and other constants to `folder`.

    Raises ModelNotSupported, after the weights are written, if the graph has no JSON form.
    """
    state = module.state_dict(keep_vars=True)
    frozen = [n for n, v in state.items() if isinstance(v, nn.Parameter) and not v.requires_grad]
    kinds = {
        "parameters": [name for name, value in state.items() if isinstance(value, nn.Parameter)],
        "frozen": frozen,
        "ties": [[a, b] for a, b in _ties(state)],
        "tables": list(module.tables),
    }
    # One entry: safetensors writes several in an order that changes from process to process, and
    # the same model should be the same file.
    _write(folder / WEIGHTS, state, {_KINDS: json.dumps(kinds)})
    others = {name: value for name, value in module.named_buffers() if name not in state}
    if others:
        _write(folder / CONSTANTS, others)
    (folder / GRAPH).write_text(graph_to_json(module.graph), encoding="utf-8")


def _write(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Safetensors with the rights of any other file; each name a copy, as it refuses sharing."""
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    path.write_bytes(safetensors_bytes(copies, metadata))


def _ties(state: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    """(name, first name of the same tensor) for every further name."""
    first: dict[int, str] = {}
    return [
        (name, first[id(value)])
        for name, value in state.items()
        if first.setdefault(id(value), name) != name
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, list[object]]]:
    """Tensors by name, and the lists that the file's metadata holds."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kinds = json.loads((file.metadata() or {}).get(_KINDS, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(kinds, dict) or not all(isinstance(v, list) for v in kinds.values()):
        raise _unreadable(path, f"{_KINDS} {str(kinds)[:60]!r} in its metadata")
    return tensors, kinds


def _unreadable(path: Path, got: str) -> UsageError:
    return UsageError(
        f"loading the bundle at {path}: expected a file that a run wrote, got: {got}. Give the "
        f"folder of a finished run.",
        where=str(path),
    )


def _tree(
    weights: dict[str, torch.Tensor],
    constants: dict[str, torch.Tensor],
    kinds: dict[str, list[object]],
) -> nn.Module:
    """Modules that hold every tensor at its dotted name."""
    root = nn.Module()
    parameters, frozen = set(kinds.get("parameters", [])), set(kinds.get("frozen", []))
    for name, tensor in weights.items():
        owner, last = _owner(root, name)
        if name in parameters:
            owner.register_parameter(last, nn.Parameter(tensor, name not in frozen))
        else:
            owner.register_buffer(last, tensor)
    for name, tensor in constants.items():
        owner, last = _owner(root, name)
        owner.register_buffer(last, tensor, persistent=False)
    for tie in kinds.get("ties", []):
        if isinstance(tie, list) and len(tie) == 2 and all(name in weights for name in tie):
            (owner, last), (other, first) = _owner(root, tie[0]), _owner(root, tie[1])
            setattr(owner, last, getattr(other, first))
    return root


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    module = root
    for part in filter(None, path.split(".")):
        if part not in module._modules:
            if hasattr(module, part):
                raise UsageError(
                    f"loading the bundle at {name}: expected the name of a module, got {part!r}, "
                    f"which is another thing of a module. Make the bundle again.",
                    where=name,
                )
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module, last


def _require_attribute(root: nn.Module, target: str, folder: Path) -> None:
    """Every name in the graph is a tensor that was read, or the mode of a module."""
    owner, last = _owner(root, target)
    if last == "training":
        owner.training = False
    elif last not in owner._parameters and last not in owner._buffers:
        raise UsageError(
            f"loading the bundle at {folder}: expected a tensor {target}, which {GRAPH} names, got "
            f"none in {WEIGHTS}. Make the bundle again.",
            where=target,
        )
