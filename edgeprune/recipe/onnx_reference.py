"""What ONNX Runtime makes of a file, held against the module that was imported from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from torch.utils import _pytree as pytree

from edgeprune.errors import ModelNotSupported, UsageError
from edgeprune.recipe.onnx_source import Array

TOLERANCE = 1e-4
"""Largest difference in units of the output's standard deviation, as for proofs."""


class Reference:
    """A session on the file itself: the CPU provider, one thread, everything else as it comes."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.path = path
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
            raise self._refused(error) from error

    def outputs(self, args: Sequence[torch.Tensor]) -> list[Array]:
        """The file's outputs for one call."""
        names = [node.name for node in self._session.get_inputs()]
        feeds = dict(zip(names, (tensor.numpy() for tensor in args), strict=True))
        try:
            found: list[Array] = self._session.run(None, feeds)
        except Exception as error:  # as above
            raise self._refused(error) from error
        return found

    def chunked(self, args: Sequence[torch.Tensor], chunk: int) -> list[Array]:
        """Outputs of a batch that is fed `chunk` samples at a time, joined along the batch."""
        batch = args[0].shape[0]
        parts = [
            self.outputs([x[at : at + chunk] if x.shape[0] == batch else x for x in args])
            for at in range(0, batch, chunk)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _refused(self, error: Exception) -> UsageError:
        return UsageError(
            f"running the model at {self.path}: expected ONNX Runtime {ort.__version__} to take "
            f"it, got: {' '.join(str(error).split())[:400]}. Check the file, or give the shapes "
            f"that it takes: --input.",
            where=str(self.path),
        )


def require_same(
    module: nn.Module, reference: Reference, trials: Sequence[tuple[torch.Tensor, ...]], chunk: int
) -> None:
    """Raise ModelNotSupported where module and file differ on a trial, or no output ever varies.

    Each trial holds the tensors of one call; the file is fed `chunk` samples at a time, 0: all.
    """
    varies = False
    for trial in trials:
        expected = reference.chunked(trial, chunk) if chunk else reference.outputs(trial)
        with torch.no_grad():
            result = module(*(tensor.clone() for tensor in trial))
        got = [leaf.detach().numpy() for leaf in pytree.tree_leaves(result)]
        shapes = [x.shape for x in expected], [x.shape for x in got]
        spelled = ", ".join("x".join(str(size) for size in tensor.shape) for tensor in trial)
        if shapes[0] != shapes[1]:
            raise ModelNotSupported(
                f"importing at {reference.path}: expected outputs of {shapes[0]} for inputs of "
                f"{spelled} as ONNX Runtime gives, got {shapes[1]}. Report this with the file.",
                where=str(reference.path),
            )
        for index, (want, have) in enumerate(zip(expected, got, strict=True)):
            error = relative_error(want, have)
            if not error <= TOLERANCE:
                raise ModelNotSupported(
                    f"importing at {reference.path}, output {index} for inputs of {spelled}: "
                    f"expected ONNX Runtime's values within {TOLERANCE:g} of their standard "
                    f"deviation, got an error of {error:.3g}. Report this with the file.",
                    where=str(reference.path),
                )
            varies = varies or (want.size > 1 and bool((want != want.reshape(-1)[0]).any()))
    if not varies:
        raise ModelNotSupported(
            f"importing at {reference.path}: expected outputs that vary with the input, got the "
            f"same number everywhere, which says nothing. Export a model with trained weights.",
            where=str(reference.path),
        )


def relative_error(want: Array, have: Array) -> float:
    """max |a - b| / standard deviation of a; by the largest |a| where a does not vary."""
    if want.size == 0 or np.array_equal(want, have):
        return 0.0
    if want.dtype.kind != "f":
        return float("inf")
    a, b = want.astype(np.float64), have.astype(np.float64)
    difference = np.where(a == b, 0.0, np.abs(a - b))
    return float(difference.max() / (a.std() or np.abs(a).max() or 1.0))


def varied(args: Sequence[torch.Tensor], batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Other values of the same kind at another batch: ramps and noise, or integers shuffled.

    A tensor whose first dim is the batch (that of the first tensor) gets `batch` samples.
    """
    generator = torch.Generator().manual_seed(seed)
    first = args[0].shape[0] if args and args[0].dim() else None
    made = []
    for tensor in args:
        shape = list(tensor.shape)
        if tensor.dim() and shape[0] == first:
            shape[0] = batch
        if tensor.is_floating_point():
            value = torch.randn(shape, generator=generator)
            for dim, size in enumerate(shape):
                ramp = torch.linspace(-1.0, 1.0, size)
                value += 0.5 * torch.sin(3.0 * ramp).reshape([-1] + [1] * (len(shape) - dim - 1))
            made.append(value.to(tensor.dtype))
            continue
        count = int(np.prod(shape))
        places = torch.randint(0, max(tensor.numel(), 1), (count,), generator=generator)
        made.append(tensor.reshape(-1)[places].reshape(shape))
    return tuple(made)
