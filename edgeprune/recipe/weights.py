"""Trained weights from a file into a module, every key accounted for.

A file may hold the state dict itself, or a checkpoint with exactly one state dict in it
(`{"model": ..., "epoch": 3}`); every key may carry the prefix that DataParallel or torch.compile
put before it. Both are undone; after that the keys must be the model's, all of them.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgeprune.errors import UsageError

_SHOWN = 5
"""Keys listed of each kind before the rest is only counted."""

_WRAPPERS = ("module.", "_orig_mod.")
"""What torch.nn.DataParallel and torch.compile put before every key."""


_NAMED = re.compile(r"GLOBAL (\S+) was not an allowed global")
"""The class or function that torch's unpickler refused to call."""


def load_weights_(module: nn.Module, path: Path) -> None:
    """Write the weights of `path` into `module` (in place): same keys, same shapes.

    `.safetensors`, or what torch.load reads with weights_only=True: a state dict, or a checkpoint
    with one in it. A key that only repeats a tied parameter may be absent, since safetensors
    stores each tensor once.
    Raises UsageError listing tensors that are not plain (sparse, quantized, complex for a real
    parameter), missing, unexpected and wrongly shaped keys, keys with NaN, and keys of one tied
    parameter with different values, of which the last would silently win.
    """
    expected = module.state_dict()
    state = _without_wrapper(read_state(path), expected)
    _require_plain(state, expected, path)
    tied = _tied_to_a_given(expected, state)
    missing = [key for key in expected if key not in state and key not in tied]
    unexpected = [key for key in state if key not in expected]
    faults = (
        ("missing", [_with_nearest(key, unexpected) for key in missing]),
        ("unexpected", unexpected),
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
    spoilt = [key for key, value in state.items() if value.isnan().any()]
    if spoilt:
        raise UsageError(
            f"loading the weights at {path}: expected numbers, got NaN in {len(spoilt)} of "
            f"{len(state)} tensors: {_shorten(spoilt)}. Take a checkpoint from before training "
            f"diverged.",
            where=str(path),
        )
    torn = _torn_ties(expected, state)
    if torn:
        raise UsageError(
            f"loading the weights at {path}: expected one value for weights that "
            f"{type(module).__name__} shares, got two: {_shorten(torn)}. Build the model as it was "
            f"trained, or save it again.",
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
            raise _unreadable(path, "a safetensors file", _first_line(error)) from error
    try:
        with warnings.catch_warnings():
            # Torch warns of how the file was made (sparse, another pickle protocol); what of it
            # matters is refused, by key.
            warnings.simplefilter("ignore")
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # junk fails in its unpickler with whatever it stumbles over
        raise _unreadable(path, "a state dict of tensors only", _said_by_torch(error)) from error
    state = _as_tensors(loaded)
    return _from_checkpoint(loaded, path) if state is None else state


def _as_tensors(value: object) -> dict[str, torch.Tensor] | None:
    """A mapping from keys to tensors and nothing else, not empty; None for anything else."""
    if not isinstance(value, Mapping) or not value:
        return None
    tensors: dict[str, torch.Tensor] = {}
    for key, member in value.items():
        if not isinstance(key, str) or not isinstance(member, torch.Tensor):
            return None
        tensors[key] = member
    return tensors


def _from_checkpoint(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    """The one state dict among a checkpoint's entries; of several, none is chosen silently."""
    entries = loaded if isinstance(loaded, Mapping) else {}
    found = {str(key): _as_tensors(value) for key, value in entries.items()}
    states = {key: state for key, state in found.items() if state is not None}
    if len(states) == 1:
        return next(iter(states.values()))
    kinds = [f"{key} ({type(value).__name__})" for key, value in entries.items()]
    got = _shorten(kinds) if kinds else type(loaded).__name__
    if states:
        got = f"{len(states)} of them: {_shorten(list(states))}"
    raise UsageError(
        f"loading the weights at {path}: expected a state dict (key to tensor), or a checkpoint "
        f"with one, got {got}. Save the state dict that you mean by itself.",
        where=str(path),
    )


def _without_wrapper(
    state: dict[str, torch.Tensor], expected: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Keys without the prefix of a wrapper, where all of them have it and the model has not."""
    for prefix in _WRAPPERS:
        is_wrapped = all(key.startswith(prefix) for key in state)
        if is_wrapped and not any(key.startswith(prefix) for key in expected):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _with_nearest(key: str, unexpected: list[str]) -> str:
    """`a.weight (is it 'a.wieght'?)` where an unexpected key is much like a missing one."""
    near = difflib.get_close_matches(key, unexpected, n=1, cutoff=0.8)
    return f"{key} (is it {near[0]!r}?)" if near else key


def _require_plain(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Every tensor dense and readable, and real where the model's is: no number gets lost."""
    odd = []
    for key, value in state.items():
        if value.is_quantized:
            odd.append(f"{key} (quantized)")
        elif value.is_meta:
            odd.append(f"{key} (without values, of the meta device)")
        elif value.is_nested or value.layout != torch.strided:
            layout = str(value.layout).removeprefix("torch.")
            odd.append(f"{key} ({'nested' if value.is_nested else layout})")
        elif value.is_complex() and key in expected and not expected[key].is_complex():
            odd.append(f"{key} (complex, for a real parameter)")
    if odd:
        raise UsageError(
            f"loading the weights at {path}: expected dense tensors of the model's kind of "
            f"numbers, got others in {len(odd)} of {len(state)}: {_shorten(odd)}. Convert them "
            f"(to_dense(), dequantize(), .real) and save the state dict again.",
            where=str(path),
        )


def _unreadable(path: Path, expected: str, got: str) -> UsageError:
    return UsageError(
        f"loading the weights at {path}: expected {expected}, got {got}. "
        f"Save them with safetensors.torch.save_file(model.state_dict(), ...).",
        where=str(path),
    )


def _said_by_torch(error: Exception) -> str:
    """What torch.load could not read, without its advice to unpickle whatever the file holds."""
    text = str(error)
    named = _NAMED.search(text)
    if named is not None:
        return f"a pickle that names {named[1]}"
    if "TorchScript" in text:
        return "a TorchScript archive"
    return "a pickle of another kind" if "weights_only" in text else _first_line(error)


def _first_line(error: Exception) -> str:
    """The first line of an error's text, without its full stop; its class where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")


def _tied_to_a_given(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> set[str]:
    """Keys whose tensor is the same memory as that of a key that the file has."""
    given = {_place(expected[key]) for key in state if key in expected}
    return {key for key, tensor in expected.items() if _place(tensor) in given}


def _torn_ties(
    expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> list[str]:
    """'a and b' for keys that are one tensor in the model and two in the file."""
    first: dict[object, str] = {}
    torn = []
    for key in filter(state.__contains__, expected):
        other = first.setdefault(_place(expected[key]), key)
        if not torch.equal(state[key].to(state[other].dtype), state[other]):
            torn.append(f"{other} and {key}")
    return torn


def _place(tensor: torch.Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Memory address, offset, shape and strides; an empty tensor has no address of its own."""
    address = tensor.untyped_storage().data_ptr() or id(tensor)
    return address, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def _shorten(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
