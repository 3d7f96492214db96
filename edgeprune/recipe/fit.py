"""Whether the user's data is what the user's model takes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeprune.errors import DataError
from edgeprune.recipe.data import Data
from edgeprune.recipe.evaluate import to_inputs
from edgeprune.recipe.feeding import first_batch


def require_fit(
    data: Data, args: tuple[object, ...], kwargs: Mapping[str, object], *, fixed_batch: int | None
) -> None:
    """Check the first batch of every split but test against the model's example inputs.

    Number and names of the inputs, dtype and every size but the batch must agree; the batch too
    where the model fixes it (`fixed_batch`). Raises DataError naming split, input and both shapes.
    """
    example = _tensors(args, kwargs)
    for name, split in data.splits():
        if name == "test":
            continue  # looked at once, at the end
        inputs, _ = first_batch(name, split)
        given = _tensors(*to_inputs(inputs))
        if list(given) != list(example):
            raise _fault(
                name,
                f"inputs by {_listed(example)} as in the model's example",
                _listed(given),
                "Yield a tuple for positions, a dict for keywords, or change the example.",
            )
        for place, tensor in given.items():
            _check(name, place, tensor, example[place], fixed_batch)


def _check(
    split: str, place: str, given: torch.Tensor, wanted: torch.Tensor, fixed_batch: int | None
) -> None:
    if given.dtype != wanted.dtype:
        dtype = str(wanted.dtype).removeprefix("torch.")
        raise _fault(
            split,
            f"{dtype} in {place} as in the model's example",
            str(given.dtype).removeprefix("torch."),
            f"Convert it: array.astype(np.{dtype}), or tensor.to(torch.{dtype}).",
        )
    if given.shape[1:] != wanted.shape[1:] or given.dim() != wanted.dim():
        raise _fault(
            split,
            f"{_shape(wanted)} in {place} as in the model's example",
            _shape(given),
            "Reshape the data, or set [model] input to the shape that the data has.",
        )
    if fixed_batch is not None and given.shape[0] != fixed_batch:
        raise _fault(
            split,
            f"batches of {fixed_batch} in {place}, as the model fixes its batch",
            str(given.shape[0]),
            "Yield such batches, or make the model take any batch (no int(x.shape[0]), no "
            "written-out sizes).",
        )


def _tensors(args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """The tensors of a call by place: `input 0`, `keyword x`."""
    places = {f"input {index}": value for index, value in enumerate(args)}
    places |= {f"keyword {name}": kwargs[name] for name in sorted(kwargs)}
    return {place: value for place, value in places.items() if isinstance(value, torch.Tensor)}


def _listed(tensors: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(tensors) or "nothing"


def _shape(tensor: torch.Tensor) -> str:
    return str(("B", *tensor.shape[1:])).replace("'", "") if tensor.dim() else "a scalar"


def _fault(split: str, expected: str, got: str, advice: str) -> DataError:
    return DataError(
        f"reading the data at the {split} split: expected {expected}, got {got}. {advice}",
        where=split,
    )
