"""Calibration samples for repair: read, checked, divided into fitted and held-out portions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch.utils import _pytree as pytree

from edgeprune.errors import DataError
from edgeprune.graph.capture import Captured
from edgeprune.graph.inputs import Inputs, is_batched
from edgeprune.graph.observe import TensorFact
from edgeprune.recipe.data import batches_of
from edgeprune.recipe.evaluate import to_inputs

# One sample of four is held out: it judges what the other three fitted.
_PERIOD = 4
_HELD_OUT = 1

_LARGEST_PORTION = 64
# Largest value of the graph in one portion; a portion has a handful of values alive at a time.
_PORTION_VALUE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Portion:
    """Inputs of one run, structured as the captured example; `count` samples."""

    inputs: Inputs
    count: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What repair fits on, and what judges it; no sample is in both."""

    fitted: tuple[Portion, ...]
    held_out: tuple[Portion, ...]

    @property
    def count(self) -> int:
        """Samples in all."""
        return sum(portion.count for portion in (*self.fitted, *self.held_out))


def read_calibration(captured: Captured, batches: Iterable[object], samples: int) -> Calibration:
    """The first `samples` samples of `batches`, in portions that bound the memory of one run.

    A batch is an array, tensor, tuple or dict of inputs, batch first, no labels. Every fourth
    sample is held out. A model that fixes its batch size gets portions of just that size, each
    wholly fitted or held out; a remainder is left over.
    Raises `DataError` for fewer than 2 samples (2 portions where the batch is fixed) and for
    inputs of another number, shape or dtype than the example's, or with NaN or infinity.
    """
    fixed = None if captured.dynamic_batch else captured.inputs.batch_size
    joined = _joined(captured, batches, samples)
    total = 0 if joined is None else _length(captured, joined)
    block = fixed or 1
    blocks = total // block
    if joined is None or blocks < 2:
        of = "" if fixed is None else f" blocks of {fixed}, the batch size that the model fixes,"
        raise DataError(
            f"repair at the calibration samples: expected at least 2{of or ' samples'}, got "
            f"{blocks} ({total} samples). Give a few hundred unlabelled samples."
        )
    number = torch.arange(blocks * block) // block
    held = number % _PERIOD == _HELD_OUT
    size = fixed or _portion_size(captured)
    return Calibration(
        fitted=_portions(captured, joined, torch.nonzero(~held).reshape(-1), size),
        held_out=_portions(captured, joined, torch.nonzero(held).reshape(-1), size),
    )


def _joined(captured: Captured, batches: Iterable[object], samples: int) -> Inputs | None:
    """All batches as one, cut to `samples`; None without any."""
    if isinstance(batches, torch.Tensor | Mapping) or not hasattr(batches, "__iter__"):
        raise DataError(
            f"repair at the calibration samples: expected an iterable of batches, got "
            f"{type(batches).__name__}. Give a list of batches, or a loader."
        )
    read: list[Inputs] = []
    left = samples
    for index, batch in enumerate(batches_of(batches)):
        if left <= 0:
            break
        inputs = _checked(captured, batch, index)
        length = _length(captured, inputs)
        read.append(_taken(captured, inputs, torch.arange(min(left, length))))
        left -= length
    if not read:
        return None
    first = read[0]
    columns = [pytree.tree_leaves((each.args, each.kwargs)) for each in read]
    _, spec = pytree.tree_flatten((first.args, first.kwargs))
    example = _example_leaves(captured)
    leaves = []
    for position, column in enumerate(zip(*columns, strict=True)):
        if is_batched(example[position], captured.inputs.batch_size):
            leaves.append(torch.cat(column))
        else:
            _require_constant(column, position)
            leaves.append(column[0])
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return Inputs(args=args, kwargs=kwargs)


def _require_constant(column: tuple[object, ...], position: int) -> None:
    first = column[0]
    for other in column[1:]:
        same = (
            torch.equal(other, first)
            if isinstance(other, torch.Tensor) and isinstance(first, torch.Tensor)
            else other == first
        )
        if not same:
            raise DataError(
                f"repair at input {position} of the calibration samples: expected the same value "
                "in every batch, as its first dim is not the batch, got different ones. Give "
                "batches that share it."
            )


def _checked(captured: Captured, batch: object, index: int) -> Inputs:
    """One batch, structured as the example, every leaf of the example's shape and dtype."""
    where = f"repair at calibration batch {index}"
    inputs = _bound(captured, batch, where)
    got = pytree.tree_leaves((inputs.args, inputs.kwargs))
    example = _example_leaves(captured)
    lengths = set()
    for position, (leaf, wanted) in enumerate(zip(got, example, strict=True)):
        if not isinstance(wanted, torch.Tensor):
            continue
        per_sample = is_batched(wanted, captured.inputs.batch_size)
        _require_leaf(leaf, wanted, per_sample, f"{where}, input {position}")
        if per_sample and isinstance(leaf, torch.Tensor):
            lengths.add(leaf.shape[0])
    if len(lengths) != 1:
        raise DataError(
            f"{where}: expected inputs of one length, got {sorted(lengths)}. Slice them alike."
        )
    return inputs


def _require_leaf(leaf: object, wanted: torch.Tensor, per_sample: bool, where: str) -> None:
    free = 1 if per_sample else 0
    shape = ("B", *wanted.shape[1:]) if per_sample else tuple(wanted.shape)
    spelled = str(shape).replace("'", "")
    if not isinstance(leaf, torch.Tensor) or tuple(leaf.shape[free:]) != tuple(wanted.shape[free:]):
        got = tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf).__name__
        raise DataError(
            f"{where}: expected shape {spelled} as in the example, got {got}. "
            "Give inputs alone, without labels, batch first."
        )
    if leaf.dtype != wanted.dtype:
        raise DataError(
            f"{where}: expected {wanted.dtype} as in the example, got {leaf.dtype}. Convert it."
        )
    if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
        count = int((~leaf.isfinite()).sum())
        raise DataError(
            f"{where}: expected finite numbers, got {count} of {leaf.numel()} NaN or infinite. "
            "Clean or mask these samples."
        )


def _bound(captured: Captured, batch: object, where: str) -> Inputs:
    """Positional and keyword inputs as in the example, however the batch names them.

    What the example has that is no tensor (None, a flag) is taken from there.
    """
    args, kwargs = to_inputs(batch)
    names = list(inspect.signature(captured.module.forward).parameters)
    examples = [*captured.args, *captured.kwargs.values()]
    found: dict[str, object] = dict(zip(names, args, strict=False))
    doubled = set(found) & set(kwargs)
    unknown = set(kwargs) - set(names)
    found.update(kwargs)
    for name, example in zip(names, examples, strict=True):
        leaves = pytree.tree_leaves(example)
        if name not in found and not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            found[name] = example
    missing = [name for name in names if name not in found]
    if len(args) > len(names) or doubled or unknown or missing:
        given = [*(f"input {i}" for i in range(len(args))), *kwargs]
        raise DataError(
            f"{where}: expected the model's inputs {', '.join(names)}, got "
            f"{', '.join(given) or 'none'}. Give inputs alone, without labels: an array, or a "
            "tuple or dict of them."
        )
    count = len(captured.args)
    keywords = dict(zip(captured.kwargs, names[count:], strict=True))
    return Inputs(
        args=tuple(found[name] for name in names[:count]),
        kwargs={key: found[name] for key, name in keywords.items()},
    )


def _example_leaves(captured: Captured) -> list[object]:
    return list(pytree.tree_leaves((captured.args, dict(captured.kwargs))))


def _length(captured: Captured, inputs: Inputs) -> int:
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    for leaf, example in zip(leaves, _example_leaves(captured), strict=True):
        if is_batched(example, captured.inputs.batch_size):
            return int(leaf.shape[0])
    raise DataError(
        "repair at the model's inputs: expected one with the batch as first dim, got none. "
        "A model without a batch cannot be repaired from samples."
    )


def _taken(captured: Captured, inputs: Inputs, chosen: torch.Tensor) -> Inputs:
    """The samples at the positions `chosen`, copied."""
    leaves, spec = pytree.tree_flatten((inputs.args, inputs.kwargs))
    batch = captured.inputs.batch_size
    taken = [
        leaf.index_select(0, chosen.to(leaf.device)) if is_batched(example, batch) else leaf
        for leaf, example in zip(leaves, _example_leaves(captured), strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(taken, spec)
    return Inputs(args=args, kwargs=kwargs)


def _portions(
    captured: Captured, inputs: Inputs, chosen: torch.Tensor, size: int
) -> tuple[Portion, ...]:
    return tuple(
        Portion(inputs=_taken(captured, inputs, part), count=len(part))
        for part in torch.split(chosen, size)
    )


def _portion_size(captured: Captured) -> int:
    """So many samples that the largest value of the dense graph stays within its bytes."""
    batch = captured.inputs.batch_size or 1
    largest = max(
        (
            prod(fact.shape) * fact.dtype.itemsize // batch
            for name, fact in captured.facts.items()
            if isinstance(fact, TensorFact) and fact.shape[:1] == (batch,)
        ),
        default=1,
    )
    return max(1, min(_LARGEST_PORTION, _PORTION_VALUE_BYTES // max(largest, 1)))
