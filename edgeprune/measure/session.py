"""ONNX Runtime sessions with everything explicit, and seeded inputs to feed them.

Spinning is left on, as ONNX Runtime ships it, because that is what a deployment runs: with one
thread there is no pool and nothing spins, and with more, `targets` refuses more threads than
cores, and the two models of a pair never run at once. A target that wants it off says so in
`[runtime.session_options]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edgeprune.errors import UsageError

_DTYPES: dict[str, np.dtype[np.generic]] = {
    "tensor(float)": np.dtype("float32"),
    "tensor(double)": np.dtype("float64"),
    "tensor(float16)": np.dtype("float16"),
    "tensor(int64)": np.dtype("int64"),
    "tensor(int32)": np.dtype("int32"),
    "tensor(int16)": np.dtype("int16"),
    "tensor(int8)": np.dtype("int8"),
    "tensor(uint64)": np.dtype("uint64"),
    "tensor(uint32)": np.dtype("uint32"),
    "tensor(uint16)": np.dtype("uint16"),
    "tensor(uint8)": np.dtype("uint8"),
    "tensor(bool)": np.dtype("bool"),
}


def open_session(
    model: Path, *, threads: int, session_options: Sequence[tuple[str, str]] = ()
) -> ort.InferenceSession:
    """Load an ONNX file on the CPU provider: `threads` intra-op, sequential, all optimisations.

    `session_options` are ONNX Runtime's own configuration entries, passed on as they are.
    Raises UsageError if the file cannot be read or ONNX Runtime refuses it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    for key, value in session_options:
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
        raise UsageError(
            f"loading the model at {model}: expected a file that ONNX Runtime {ort.__version__} "
            f"runs, got: {one_line(error)}. Export it again or check the file.",
            where=str(model),
        ) from error


def one_line(error: Exception) -> str:
    """ONNX Runtime's message without its line breaks and final stop, to stand in a sentence."""
    return " ".join(str(error).split()).rstrip(".")


def input_dtype(kind: str, where: str) -> np.dtype[np.generic]:
    """The NumPy dtype of an ONNX Runtime type such as `tensor(float)`."""
    if kind not in _DTYPES:
        raise UsageError(
            f"feeding the model at {where}: expected a numeric or boolean tensor, got {kind}. "
            "Export the model with such inputs.",
            where=where,
        )
    return _DTYPES[kind]


def seeded_inputs(session: ort.InferenceSession, *, batch: int, seed: int) -> dict[str, np.ndarray]:
    """One input per name for `session`, the same for the same seed.

    Floats are standard normal. Integers are 0 or 1, so that they are valid indices of any
    table with two rows; booleans are either. A dynamic first axis becomes `batch`, and so does
    any other axis with the same symbol. Raises UsageError for another dynamic axis, or when the
    model was exported for a fixed batch that differs from `batch`.
    """
    rng = np.random.default_rng(seed)
    inputs = session.get_inputs()
    batch_symbols = {node.shape[0] for node in inputs if node.shape and not _fixed(node.shape[0])}
    feeds = {}
    for node in inputs:
        where = f"input '{node.name}'"
        shape = tuple(
            size if _fixed(size) else _dynamic(size, axis, batch_symbols, batch, where)
            for axis, size in enumerate(node.shape)
        )
        feeds[node.name] = _values(rng, shape, input_dtype(node.type, where))
    if not batch_symbols and inputs and inputs[0].shape[:1] != [batch]:
        raise UsageError(
            f"feeding the model at input '{inputs[0].name}': expected a dynamic batch or a batch "
            f"of {batch}, got shape {inputs[0].shape}. Export it with a dynamic batch, or set "
            "runtime.batch of the target to the model's.",
            where=inputs[0].name,
        )
    return feeds


def _fixed(size: object) -> bool:
    return isinstance(size, int) and size >= 0


def _dynamic(size: object, axis: int, batch_symbols: set[object], batch: int, where: str) -> int:
    if axis == 0 or (size is not None and size in batch_symbols):
        return batch
    raise UsageError(
        f"feeding the model at {where}, axis {axis}: expected a fixed size (only the batch may "
        f"be dynamic), got '{size}'. Export the model with that axis fixed.",
        where=where,
    )


def _values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> np.ndarray:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
