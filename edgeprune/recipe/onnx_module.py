"""An ONNX graph as an `nn.Module` that torch.export takes: one operator after another."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, cast

import torch
from torch import nn

from edgeprune.errors import EdgepruneError
from edgeprune.recipe import (  # noqa: F401 (each registers its operators)
    onnx_numbers,
    onnx_ops_layers,
    onnx_ops_movement,
    onnx_ops_pointwise,
    onnx_ops_reduction,
)
from edgeprune.recipe.onnx_call import Call, Numbers, Value, as_numbers, run, to_tensor
from edgeprune.recipe.onnx_source import Array, Source, Step

Outputs: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...]"

# Inputs that hold weights, however small: a layer of one channel has weights of one element.
_WEIGHTS = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
}
_STATISTICS = {"BatchNormalization": (3, 4)}
# Inputs that are read as numbers although they are floats of several elements.
_FACTORS = {"Resize": (1, 2), "Upsample": (1,)}


class StepModule(nn.Module):
    """One step as a submodule, so that torch.export notes which node came from it."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(
        self, values: tuple[Value | None, ...], fixed_batch: int | None
    ) -> tuple[Value, ...]:
        """The outputs of the step."""
        return run(Call(step=self.step, values=values, fixed_batch=fixed_batch))


class OnnxModule(nn.Module):
    """The graph of a file: initializers are parameters under names made valid for torch.

    forward takes the file's inputs in their order, and returns its output, a tuple of several.
    fixed_batch: see `Call`.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.fixed_batch: int | None = None
        self.tensors: dict[str, str] = {}
        self.numbers: dict[str, Numbers] = {}
        self._copies = _copies(source)
        self._register()
        self.steps = nn.ModuleList(
            StepModule(step) for step in source.steps if step.outputs[0] not in self._copies
        )
        self.input_names = tuple(valid_names([info.name for info in source.inputs]))
        # torch.export reads the signature, and the names of an exported file's inputs come of it.
        self.forward = _named_forward(self)

    def _register(self) -> None:
        """Make a parameter, a buffer or numbers of every constant that a step reads."""
        arrays = dict(self.source.constants)
        arrays |= {name: arrays[origin] for name, origin in self._copies.items()}
        roles = _roles(self.source, arrays)
        tensors = [name for name, role in roles.items() if role != "numbers"]
        for name, path in zip(tensors, valid_paths(tensors), strict=True):
            owner, _, leaf = path.rpartition(".")
            place = _submodule(self, owner)
            tensor = torch.from_numpy(arrays[name].copy())
            if roles[name] == "weight":
                place.register_parameter(leaf, nn.Parameter(tensor))
            else:
                place.register_buffer(leaf, tensor)
            self.tensors[name] = path
        for name, role in roles.items():
            if role == "numbers":
                self.numbers[name] = as_numbers(arrays[name], str(arrays[name].dtype))

    def compute(self, *inputs: torch.Tensor) -> Outputs:
        """Run every step in order."""
        given = zip(self.source.inputs, inputs, strict=True)
        values: dict[str, Value] = {info.name: tensor for info, tensor in given}
        values |= self.numbers
        for name, path in self.tensors.items():
            owner, _, leaf = path.rpartition(".")
            values[name] = getattr(self.get_submodule(owner), leaf)
        for index, module in enumerate(self.steps):
            step = self.step(index)
            read = tuple(self._read(name, values, step) for name in step.inputs)
            try:
                made = module(read, self.fixed_batch)
            except EdgepruneError:
                raise
            except Exception as error:  # torch refuses shapes, dtypes and values in many ways
                why = " ".join(str(error).split())[:300]
                got = f"{type(error).__name__}: {why}"
                raise step.refused("inputs that torch takes", got) from error
            values |= dict(zip(step.outputs, made, strict=False))
        outputs = tuple(self._output(name, values) for name in self.source.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def step(self, index: int) -> Step:
        """The step of the submodule `steps.<index>`."""
        return cast("StepModule", self.steps[index]).step

    def _read(self, name: str, values: Mapping[str, Value], step: Step) -> Value | None:
        if not name:
            return None
        if name not in values:
            raise step.refused(f"a value {name!r}", "none of that name")
        return values[name]

    def _output(self, name: str, values: Mapping[str, Value]) -> torch.Tensor:
        value = values.get(name)
        if isinstance(value, torch.Tensor):
            return value
        last = Step(
            op="Output", name=name, inputs=(), outputs=(), attributes={}, opset=self.source.opset
        )
        if value is None:
            raise last.refused("an output that a node makes", "none")
        return to_tensor(value, last)


def _named_forward(module: OnnxModule) -> Callable[..., Outputs]:
    def forward(*inputs: torch.Tensor) -> Outputs:
        return module.compute(*inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in module.input_names]
    vars(forward)["__signature__"] = inspect.Signature(parameters)
    return forward


def _copies(source: Source) -> dict[str, str]:
    """Values that an Identity makes of a constant, and that constant.

    torch's older exporter writes weights of equal values once, and names the others so: a tie by
    accident, which would couple layers. Each becomes a parameter of its own, under its own name.
    """
    origins: dict[str, str] = {}
    for step in source.steps:
        if step.op != "Identity" or step.outputs[0] in source.outputs:
            continue
        name = origins.get(step.inputs[0], step.inputs[0])
        if name in source.constants:
            origins[step.outputs[0]] = name
    return origins


def _roles(source: Source, arrays: Mapping[str, Array]) -> dict[str, str]:
    """What each constant that is read is to torch: `weight`, `buffer` or `numbers`."""
    roles: dict[str, str] = {}
    for step in source.steps:
        for index, name in enumerate(step.inputs):
            if name in arrays:
                role = _role(step.op, index, arrays[name])
                roles[name] = _stronger(roles.get(name), role)
    return roles | {name: "buffer" for name in source.outputs if name in arrays}


def _role(op: str, index: int, array: Array) -> str:
    if array.dtype.kind != "f" or index in _FACTORS.get(op, ()):
        return "numbers"
    if index in _STATISTICS.get(op, ()):
        return "buffer"
    return "weight" if index in _WEIGHTS.get(op, ()) or array.size > 1 else "numbers"


def _stronger(one: str | None, other: str) -> str:
    """A constant with several readers is what trains least wrongly: weight before numbers."""
    order = ("buffer", "weight", "numbers")
    return other if one is None else min(one, other, key=order.index)


def valid_names(names: Iterable[str]) -> list[str]:
    """Python identifiers, each once: `input.1` becomes `input_1`."""
    used: set[str] = set()
    return [_unique(_identifier(name), used) for name in names]


def valid_paths(names: Iterable[str]) -> list[str]:
    """Paths of a state dict, each once: dots stay, every part is made an identifier or a number.

    valid_paths(["a.0.weight", "onnx::MatMul_12"]) == ["a.0.weight", "onnx__MatMul_12"]
    A name that is also the beginning of another (`a`, `a.b`) gets a suffix.
    """
    paths = []
    for name in names:
        parts = [part for part in re.split(r"[./]", name) if part] or ["weight"]
        parts = [part if part.isdigit() else _attribute_name(part) for part in parts]
        if parts[-1].isdigit():
            parts[-1] = f"_{parts[-1]}"
        paths.append(".".join(parts))
    folders = {".".join(p.split(".")[:n]) for p in paths for n in range(1, p.count(".") + 1)}
    used = set(folders)
    return [_unique(path, used) for path in paths]


_OWN = ("steps", "source", "fixed_batch", "tensors", "numbers", "input_names")


def _attribute_name(name: str) -> str:
    """An identifier that no module has as an attribute already, such as `float` or `training`."""
    text = _identifier(name)
    is_taken = hasattr(_BLANK, text) or hasattr(OnnxModule, text) or text in _OWN
    return f"{text}_" if is_taken else text


_BLANK = nn.Module()


def _identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name, flags=re.ASCII) or "value"
    text = f"_{text}" if text[0].isdigit() else text
    return f"{text}_" if keyword.iskeyword(text) else text


def _unique(name: str, used: set[str]) -> str:
    candidate, count = name, 0
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    used.add(candidate)
    return candidate


def _submodule(root: nn.Module, path: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        found = root._modules[name]
        if found is None:
            raise AttributeError(f"{name} of {path} is no module")
        root = found
    return root
