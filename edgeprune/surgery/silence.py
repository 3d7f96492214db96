"""Silence on the edge: what the dense model computes when removed units are not heard.

On the edge from each removed unit into each of its readers the value is masked; no parameter is
touched. Zeroing parameters instead is unsound: weight_norm re-normalises, a tied head silences
the producer too, biases and sigmoid(0) = 0.5 leak.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from edgeprune.errors import InternalError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.inputs import Inputs
from edgeprune.graph.module import CapturedModule, flat_inputs
from edgeprune.graph.rules.normalisation import GROUP_NORM, LAYER_NORM
from edgeprune.graph.trace import Edge
from edgeprune.recipe.trial import same_buffers

aten = torch.ops.aten


class Silencer(fx.Interpreter):
    """Runs the dense graph with a mask on every edge into a reader.

    `kept` is boolean (labels,). Node results may be watched through `results` (for finding
    where a shrunk graph goes wrong).
    """

    def __init__(self, analysis: Analysis, module: CapturedModule, kept: NDArray[np.bool_]) -> None:
        super().__init__(module)
        self.masks: dict[str, list[tuple[Edge, Mask]]] = defaultdict(list)
        self.redefined: dict[str, list[Mask]] = defaultdict(list)
        batch = analysis.captured.inputs.batch_size
        for edge in analysis.walk.edges:
            mask = Mask(edge.layer, kept, batch)
            if not mask.all:
                self.masks[edge.node].append((edge, mask))
        for item in analysis.walk.redefinitions:
            mask = Mask(item.layer, kept, batch)
            if mask.all:
                continue
            if item.formula not in (LAYER_NORM, GROUP_NORM):
                raise InternalError(f"proof at {item.node}: no formula {item.formula!r}.")
            self.redefined[item.node].append(mask)

    def run_node(self, n: fx.Node) -> object:
        """Run one node, masked where it reads removed units."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.name in self.redefined:
            masked = masked_group_norm if n.target is aten.group_norm.default else masked_layer_norm
            x = cast(torch.Tensor, args[0])
            heard = [mask.over(x) for mask in self.redefined[n.name]]
            return masked(functools.reduce(torch.logical_and, heard), *args)
        if n.name not in self.masks:
            return super().run_node(n)
        operands = list(args)
        for edge, mask in self.masks[n.name]:
            operands[edge.operand] = _masked(operands[edge.operand], mask, edge.member)
        return getattr(self, n.op)(n.target, tuple(operands), kwargs)

    def outputs(self, inputs: Inputs) -> tuple[object, ...]:
        """Flat outputs for `inputs`; what the graph writes into its buffers is put back."""
        module = cast(CapturedModule, self.module)
        with torch.no_grad(), same_buffers(module):
            flat = flat_inputs(module, inputs.args, inputs.kwargs)
            return tuple(self.run(*flat, enable_io_processing=False))


class Mask:
    """What is heard of an operand with labels `layer`: `kept` of them, at any batch size.

    A layer has the shape of the captured run, in which the batch of `batch` samples may be merged
    with channels (a convolution with a group a sample, of a style-based GAN).
    """

    def __init__(self, layer: torch.Tensor, kept: NDArray[np.bool_], batch: int | None) -> None:
        self._layer, self._batch = layer, batch
        self._mask = torch.from_numpy(kept[layer.numpy()])
        self.all = bool(self._mask.all())

    def over(self, x: torch.Tensor) -> torch.Tensor:
        """Boolean that broadcasts to `x`, on its device."""
        mask = self._mask
        for dim in range(-mask.dim(), 0):
            if mask.shape[dim] not in (1, x.shape[dim]) and self._batch:
                labels = self._layer.movedim(dim, 0)
                index = samples(labels, self._batch, x.shape[dim])
                mask = mask.index_select(dim, index)
        return mask.to(x.device)


def samples(labels: torch.Tensor, batch: int, size: int) -> torch.Tensor:
    """For `size` positions of another batch, the positions of `labels` (n, ...) they repeat.

    n = outer x batch x inner, with the same labels for every sample; that way to split n is
    looked for from the outermost on.
    """
    n = len(labels)
    samples, rest = divmod(size * batch, n)
    splits = () if rest or n % batch else range(1, n // batch + 1)
    for outer in splits:
        if (n // batch) % outer:
            continue
        split = labels.reshape(outer, batch, n // batch // outer, *labels.shape[1:])
        if bool((split == split[:, :1]).all()):
            at = torch.arange(n).reshape(outer, batch, -1)[:, :1]
            return at.expand(-1, samples, -1).reshape(-1)
    raise InternalError(
        f"proof: expected {n} labelled positions to be those of {batch} samples alike, got others "
        f"at {size} positions. Report the model."
    )


def _masked(value: object, mask: Mask, member: int) -> object:
    """`value` where the mask is true, else 0; of a list of operands, the one at `member`."""
    if isinstance(value, list | tuple):
        return [_masked(v, mask, 0) if i == member else v for i, v in enumerate(value)]
    tensor = cast(torch.Tensor, value)
    return torch.where(mask.over(tensor), tensor, torch.zeros_like(tensor))


def masked_layer_norm(
    mask: torch.Tensor,
    x: torch.Tensor,
    normalized_shape: list[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> torch.Tensor:
    """aten.layer_norm with mean and variance of the kept positions only (Ba et al. 2016,
    arXiv 1607.06450, over the kept width).

    The declared redefinition. `mask`, boolean, broadcasts to x; the last dims are normalised.
    """
    dims = tuple(range(x.dim() - len(normalized_shape), x.dim()))
    result = _normalised(mask, x, dims, eps)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def masked_group_norm(
    mask: torch.Tensor,
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> torch.Tensor:
    """aten.group_norm of one group, x (N, C, ...), with mean and variance of the kept channels
    only (Wu and He 2018, arXiv 1803.08494, over the kept channels).

    The declared redefinition. `mask`, boolean, broadcasts to x.
    """
    if groups != 1:
        raise InternalError(f"proof: group_norm of {groups} groups has no formula.")
    channels = (-1,) + (1,) * (x.dim() - 2)
    result = _normalised(mask, x, tuple(range(1, x.dim())), eps)
    result = result if weight is None else result * weight.reshape(channels)
    return result if bias is None else result + bias.reshape(channels)


def _normalised(
    mask: torch.Tensor, x: torch.Tensor, dims: tuple[int, ...], eps: float
) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps), mean = sum(kept x) / kept count, variance likewise."""
    heard = mask.to(x.device).expand(x.shape)
    count = heard.sum(dims, keepdim=True)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    mean = torch.where(heard, x, zero).sum(dims, keepdim=True) / count
    centred = torch.where(heard, x - mean, zero)
    variance = centred.square().sum(dims, keepdim=True) / count
    return (x - mean) / torch.sqrt(variance + eps)
