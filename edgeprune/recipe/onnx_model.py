"""A model from an ONNX file: rebuilt in torch, compared with ONNX Runtime, then taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import fx, nn
from torch.export import Dim

from edgeprune.errors import EdgepruneError, ModelNotSupported, UsageError
from edgeprune.recipe.example import example_inputs
from edgeprune.recipe.inputs import InputSpec, as_dtype
from edgeprune.recipe.onnx_call import known_operators, torch_dtype
from edgeprune.recipe.onnx_module import OnnxModule
from edgeprune.recipe.onnx_reference import Reference, require_same, varied
from edgeprune.recipe.onnx_source import Input, Source, read_source

_BATCH = 2
"""Samples of an example whose batch the file leaves open; torch.export would bake a 1."""


def from_onnx(
    path: Path | str, args: Sequence[torch.Tensor] | torch.Tensor | None = None
) -> nn.Module:
    """The float model in an ONNX file as a module, for `prune(from_onnx("m.onnx"), (x,))`.

    args: example inputs in the file's order; needed where the file leaves more open than the
    batch, or where an integer input must stay below something. Initializers are its parameters
    under their own names (`onnx::MatMul_12` becomes `onnx__MatMul_12`), BatchNorm statistics its
    buffers; nodes are named in pins as the file names them. A batch that the file leaves open
    stays open; one that it fixes is opened where every sample then still gives what ONNX Runtime
    gives for it alone.

    The module is compared with ONNX Runtime on the file itself, on several inputs and batches,
    within 1e-4 of the outputs' standard deviation. Raises UsageError for a file that cannot be
    read or does not take the inputs, ModelNotSupported (with operator, node and opset) for what is
    not understood, quantized models among it, and where the comparison fails.
    """
    return imported(Path(path), args)[0]


def imported(
    path: Path,
    args: Sequence[torch.Tensor] | torch.Tensor | None = None,
    seed: int = 0,
) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The module of a file, see `from_onnx`, and an example of its inputs."""
    if not path.is_file():
        raise UsageError(
            f"loading the model at {path}: expected a file, got none. Give its path relative to "
            f"the recipe or the current directory.",
            where=str(path),
        )
    source = read_source(path)
    if args is None:
        args = example_inputs(tuple(_spec(info, source) for info in source.inputs), seed)
    example = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    _require_fit(source, example)
    for step in source.steps:
        if step.op not in known_operators():
            raise step.refused("an operator that edgeprune imports", step.op)
    reference = Reference(path)
    reference.outputs(example)  # what the file itself does not take is not our import's fault
    module = OnnxModule(source)
    with torch.no_grad():
        module(*example)  # a node that is not understood is told here, before any other batch
    return _taken(module, source, reference, example), example


def _taken(
    module: OnnxModule, source: Source, reference: Reference, example: tuple[torch.Tensor, ...]
) -> nn.Module:
    """The graph with a free batch where that is possible, else with the file's or example's."""
    size = _batch(example)
    first = source.inputs[0].shape[:1] if source.inputs else ()
    fixed = first[0] if first and isinstance(first[0], int) else None
    if size is not None and fixed is None:
        trial = example if size > 1 else varied(example, _BATCH, 1)
        trials = [trial, *(varied(example, n, n) for n in (1, 2, 3))]
        found = _attempt(module, source, reference, trial, trials, chunk=0)
        if found is not None:
            return found
    if fixed:
        module.fixed_batch = fixed
        trials = [varied(example, fixed * n, n) for n in (1, 3)]
        wide = varied(example, fixed + 2, 1)
        found = _attempt(module, source, reference, wide, trials, chunk=fixed)
        if found is not None:
            return found
        module.fixed_batch = None
    graph = _exported(module, source, example, free=False)
    trials = [example, *(varied(example, size or 1, n) for n in (1, 2))]
    require_same(graph, reference, trials, chunk=0)
    return graph


def _attempt(
    module: OnnxModule,
    source: Source,
    reference: Reference,
    example: tuple[torch.Tensor, ...],
    trials: Sequence[tuple[torch.Tensor, ...]],
    chunk: int,
) -> nn.Module | None:
    """The graph with a free batch; None where it cannot be had, or would compute something else."""
    try:
        graph = _exported(module, source, example, free=True)
        require_same(graph, reference, trials, chunk)
    except (EdgepruneError, RuntimeError, ValueError):
        return None
    return graph


def _exported(
    module: OnnxModule, source: Source, example: tuple[torch.Tensor, ...], *, free: bool
) -> nn.Module:
    """torch.export's graph of the module, its nodes called as the file calls them."""
    size = _batch(example)
    shapes = tuple(
        {0: Dim.DYNAMIC} if free and tensor.dim() and tensor.shape[0] == size else {}
        for tensor in example
    )
    try:
        program = torch.export.export(
            module.eval(), example, dynamic_shapes=_named(module, shapes), strict=False
        )
    except EdgepruneError:
        raise
    except Exception as error:  # torch.export raises anything
        why = " ".join(str(error).split())[:400]
        raise ModelNotSupported(
            f"importing at {source.path}: expected torch.export to take the rebuilt model, got "
            f"{type(error).__name__}: {why}. Report this with the file.",
            where=str(source.path),
        ) from error
    graph = program.module(check_guards=False)
    if not isinstance(graph, fx.GraphModule):
        raise TypeError(f"expected a GraphModule of torch.export, got {type(graph).__name__}")
    for node in graph.graph.nodes:
        node.meta = _provenance(node, module)
    return graph


def _named(module: OnnxModule, shapes: tuple[dict[int, object], ...]) -> dict[str, object]:
    return dict(zip(module.input_names, shapes, strict=True))


def _provenance(node: fx.Node, module: OnnxModule) -> dict[str, object]:
    """Which step made a node, in place of a line of ours: path `steps.<n>`, operator and name."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        if str(path).startswith("steps."):
            step = module.step(int(str(path).split(".")[1].partition("@")[0]))
            return {"module": str(path).partition("@")[0], "where": step.place}
    return {"module": "", "where": ""}


def _batch(args: Sequence[torch.Tensor]) -> int | None:
    return int(args[0].shape[0]) if args and args[0].dim() else None


def _spec(info: Input, source: Source) -> InputSpec:
    """What an example of an input looks like; the batch may be open, nothing else."""
    batch = source.inputs[0].shape[:1]
    shape: list[int] = []
    for dim, size in enumerate(info.shape):
        if isinstance(size, int) and size > 0:
            shape.append(size)
        elif dim == 0 or (size is not None and (size,) == batch):
            shape.append(_BATCH)
        else:
            raise UsageError(
                f"loading the model at {source.path}: expected fixed sizes of input {info.name!r} "
                f"but for its batch, got {size or 'an open one'!r} in dim {dim}. Give its shape: "
                f"--input 2x3x224x224, [model] input, or from_onnx(path, (x,)).",
                where=info.name,
            )
    return InputSpec(shape=tuple(shape), dtype=as_dtype(info.dtype, info.name))


def _require_fit(source: Source, args: tuple[object, ...]) -> None:
    """UsageError where the example is not what the file takes."""
    wanted = [_spelled(info.shape, info.dtype) for info in source.inputs]
    given = [
        _spelled(tuple(x.shape), str(x.dtype).removeprefix("torch."))
        if isinstance(x, torch.Tensor)
        else type(x).__name__
        for x in args
    ]
    fits = len(args) == len(source.inputs) and all(
        isinstance(tensor, torch.Tensor)
        and tensor.dtype == torch_dtype(info.dtype)
        and tensor.dim() == len(info.shape)
        and all(
            not isinstance(size, int) or size in (have, 0)
            for size, have in zip(info.shape, tensor.shape, strict=True)
        )
        for info, tensor in zip(source.inputs, args, strict=True)
    )
    if not fits:
        raise UsageError(
            f"loading the model at {source.path}: expected inputs of {', '.join(wanted)}, got "
            f"{', '.join(given) or 'none'}. Give the shapes that the file has, or none: --input.",
            where=str(source.path),
        )


def _spelled(shape: Sequence[object], dtype: str) -> str:
    sizes = "x".join("?" if size is None else str(size) for size in shape)
    return sizes if dtype == "float32" else f"{sizes}:{dtype}"
