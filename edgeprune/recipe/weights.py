"""Trained weights from a file into a module, every key accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgeprune.errors import UsageError

_SHOWN = 5
"""Keys listed of each kind before the rest is only counted."""


def load_weights_(module: nn.Module, path: Path) -> None:
    """Write the weights of `path` into `module` (in place): same keys, same shapes.

    `.safetensors`, or a state dict that torch.load reads with weights_only=True. A key that only
    repeats a tied parameter may be absent, since safetensors stores each tensor once.
    Raises UsageError listing missing, unexpected and wrongly shaped keys.
    """
    state = read_state(path)
    expected = module.state_dict()
    tied = _tied_to_a_given(expected, state)
    faults = (
        ("missing", [key for key in expected if key not in state and key not in tied]),
        ("unexpected", [key for key in state if key not in expected]),
        (
            "of another shape",
            [
                f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
                for key in expected
                if key in state and state[key].shape != expected[key].shape
            ],
        ),
    )
    if any(keys for _, keys in faults):
        listed = "; ".join(f"{len(keys)} {kind}: {_shorten(keys)}" for kind, keys in faults if keys)
        raise UsageError(
            f"loading the weights at {path}: expected the {len(expected)} keys of "
            f"{type(module).__name__}, got {listed}. Save model.state_dict() of the same model.",
            where=str(path),
        )
    module.load_state_dict(state, strict=False)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by key, on the CPU."""
    if not path.is_file():
        raise UsageError(
            f"loading the weights at {path}: expected a file, got none. Check the path.",
            where=str(path),
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _unreadable(path, "a safetensors file", error) from error
    try:
        state: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # junk fails in its unpickler with whatever it stumbles over
        raise _unreadable(path, "a state dict of tensors only", error) from error
    return _as_state(state, path)


def _as_state(state: object, path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    others: list[str] = []
    if isinstance(state, Mapping):
        for key, value in state.items():
            if isinstance(key, str) and isinstance(value, torch.Tensor):
                tensors[key] = value
            else:
                others.append(f"{key} ({type(value).__name__})")
        if not others:
            return tensors
    got = f"also {_shorten(others)}" if others else type(state).__name__
    raise UsageError(
        f"loading the weights at {path}: expected a state dict (key to tensor), got {got}. "
        f"Save model.state_dict() itself, not a checkpoint that contains it.",
        where=str(path),
    )


def _unreadable(path: Path, expected: str, error: Exception) -> UsageError:
    first = str(error).strip().splitlines() or [type(error).__name__]
    return UsageError(
        f"loading the weights at {path}: expected {expected}, got {first[0]} "
        f"Save them with safetensors.torch.save_file(model.state_dict(), ...).",
        where=str(path),
    )


def _tied_to_a_given(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> set[str]:
    """Keys whose tensor is the same memory as that of a key that the file has."""
    given = {_place(expected[key]) for key in state if key in expected}
    return {key for key, tensor in expected.items() if _place(tensor) in given}


def _place(tensor: torch.Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Memory address, offset, shape and strides; an empty tensor has no address of its own."""
    address = tensor.untyped_storage().data_ptr() or id(tensor)
    return address, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def _shorten(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
