"""Export a model to one ONNX file, checked, with its origin written into it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

import edgeprune
from edgeprune.errors import EnvironmentFailed, ModelNotSupported, UsageError
from edgeprune.exporting.agreement import require_agreement
from edgeprune.exporting.translate import translate
from edgeprune.graph.capture import capture
from edgeprune.measure.result import file_sha256
from edgeprune.measure.session import open_session
from edgeprune.surgery.prune import Pruned

# Protobuf holds at most 2 GiB in one message; the graph itself needs room beside the weights.
_SINGLE_FILE_BYTES = 2**31 - 2**24
# Shapes and the like stay in the graph's own file: the checker's shape inference reads them there.
_INLINE_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One input or output of a file: ONNX Runtime's dtype, a size or a symbol for each dim.

    TensorInfo(name="x", dtype="tensor(float)", shape=("batch", 3, 224, 224))
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An ONNX file that passed the checker and that ONNX Runtime loads.

    size_bytes counts the weights' own file too (`data_path`), which models beyond 2 GiB have, and
    others on demand; sha256 is that of `path`.
    """

    path: Path
    sha256: str
    size_bytes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    data_path: Path | None = None


def export(
    model: nn.Module | Pruned,
    path: Path | str,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    opset: int = 20,
    dynamic_batch: bool = True,
    external_data: bool | None = None,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Artifact:
    """Write `model` (not changed), in eval mode, to the ONNX file `path`; replaced whole or not.

    args, kwargs: example inputs, batch first; a `Pruned` brings its own. Inputs are called as the
    parameters of `forward` (of a dict: its keys), outputs `output`, `output_0` ... or by their
    keys, the first dim `batch`; see `edgeprune.exporting.names`. metadata: (key, value) pairs for
    `metadata_props`, beside edgeprune's and torch's version; a key that is there is kept.
    external_data: whether weights of more than 256 bytes go into a file of their own, `path` with
    `.data` behind it; None: only where they are more than one file can hold (2 GiB).

    The file passes onnx.checker's full check, loads in ONNX Runtime and computes what torch
    computes on the example. Raises ModelNotSupported, with the node or output at fault.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(
            f"exporting at {path}: expected a folder {path.parent}, got none. Make it first.",
            where=str(path),
        )
    if isinstance(model, Pruned):
        example = model.analysis.captured
        args, kwargs = (example.args, example.kwargs) if args is None else (args, kwargs)
        metadata = (*metadata, ("edgeprune.plan_sha256", model.plan.fingerprint))
        model = model.model
    if args is None:
        raise UsageError(
            f"exporting at {path}: expected example inputs for a module, got none. Write "
            f"export(model, path, (x,))."
        )
    captured = capture(model, args, kwargs, dynamic_batch=dynamic_batch)
    onnx_model = translate(captured, opset)
    _add_provenance_(onnx_model, metadata)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        draft = Path(folder) / path.name
        data = _save(onnx_model, draft, external_data)
        session = _checked(draft, captured.module)
        require_agreement(session, captured, path.name)
        artifact = Artifact(
            path=path,
            sha256=file_sha256(draft),
            size_bytes=sum(file.stat().st_size for file in Path(folder).iterdir()),
            inputs=_infos(session.get_inputs()),
            outputs=_infos(session.get_outputs()),
            opset=opset,
            data_path=None if data is None else path.parent / data.name,
        )
        del session
        for file in filter(None, (data, draft)):
            _move(file, path.parent / file.name)
    return artifact


def _checked(draft: Path, module: nn.Module) -> ort.InferenceSession:
    """`check_file`; where the weights are not float32, a refusal says that this may be why."""
    try:
        return check_file(draft)
    except ModelNotSupported as error:
        kinds = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
        if not kinds:
            raise
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        start = str(error).removesuffix(" Report this with the model.")
        raise ModelNotSupported(
            f"{start} Its weights are {names}: export a copy in float32, `model.float()`.",
            where=error.where,
        ) from error


def check_file(path: Path) -> ort.InferenceSession:
    """onnx.checker with full check, then a session of ONNX Runtime; ModelNotSupported if not."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        return open_session(path, threads=1)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _refused(path, "onnx.checker", error) from error
    except UsageError as error:
        raise _refused(path, "ONNX Runtime", error) from error
    except Exception as error:  # no protobuf: the class depends on its build
        raise _refused(path, "onnx", error) from error


def _refused(path: Path, judge: str, error: Exception) -> ModelNotSupported:
    return ModelNotSupported(
        f"checking the export at {path.name}: expected {judge} to accept it, got: "
        f"{' '.join(str(error).split())[:600]}. Report this with the model.",
        where=path.name,
    )


def _add_provenance_(model: ir.Model, metadata: tuple[tuple[str, str], ...]) -> None:
    own = (("edgeprune.version", edgeprune.__version__), ("edgeprune.torch", torch.__version__))
    for key, value in (*metadata, *own):
        model.metadata_props.setdefault(key, value)


def _save(model: ir.Model, path: Path, external_data: bool | None) -> Path | None:
    """Write the file; the path of the weights' own file where there is one."""
    weights = [value.const_value for value in model.graph.initializers.values()]
    total = sum(tensor.nbytes for tensor in weights if tensor is not None)
    is_large = total >= _SINGLE_FILE_BYTES
    if is_large and external_data is False:
        raise UsageError(
            f"exporting at {path.name}: expected weights of less than {_SINGLE_FILE_BYTES} bytes, "
            f"as one file can hold, got {total}. Leave external_data out.",
            where=path.name,
        )
    movable = any(t is not None and t.nbytes > _INLINE_BYTES for t in weights)
    if not movable or not (is_large if external_data is None else external_data):
        ir.save(model, path)
        return None
    data = path.with_name(f"{path.name}.data")
    ir.save(model, path, external_data=data.name, size_threshold_bytes=_INLINE_BYTES)
    return data


def _move(source: Path, destination: Path) -> None:
    try:
        source.replace(destination)
    except OSError as error:
        raise EnvironmentFailed(
            f"writing the export at {destination}: expected to replace it, got "
            f"{error.strerror}. Check the path and its rights.",
            where=str(destination),
        ) from error


def _infos(nodes: list[ort.NodeArg]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=node.name, dtype=node.type, shape=tuple(node.shape)) for node in nodes
    )
