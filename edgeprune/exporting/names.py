"""Names of an ONNX file's inputs and outputs: what the user's `forward` calls them.

Dense and pruned model have the same signature, so their files have the same names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch.utils import _pytree as pytree


def input_names(forward: Callable[..., object], in_spec: pytree.TreeSpec) -> tuple[str, ...]:
    """One name for every leaf of `(args, kwargs)`, in the order of `in_spec`.

    forward(x, mask)      -> x, mask
    forward(*tokens)      -> tokens_0, tokens_1
    forward(batch: dict)  -> the keys of the dict; deeper: key_0, key_name
    forward(pair: tuple)  -> pair_0, pair_1
    """
    args, kwargs = pytree.tree_unflatten(range(in_spec.num_leaves), in_spec)
    bound = inspect.signature(forward).bind(*args, **kwargs)
    names = {}
    for name, value in bound.arguments.items():
        kind = inspect.signature(forward).parameters[name].kind
        prefix = "" if kind is inspect.Parameter.VAR_KEYWORD or _is_mapping(value) else name
        names.update(_leaf_names(value, prefix))
    return tuple(unique([names[index] for index in range(in_spec.num_leaves)], taken=()))


def output_names(out_spec: pytree.TreeSpec, taken: Sequence[str] = ()) -> tuple[str, ...]:
    """One name for every leaf of the output, in the order of `out_spec`.

    tensor             -> output
    (a, b)             -> output_0, output_1
    {"p": a, "q": ...} -> p, q (a dict or dataclass gives its keys); deeper: q_0, q_name

    A name that an input has already is followed by `_out`.
    """
    structure = pytree.tree_unflatten(range(out_spec.num_leaves), out_spec)
    is_sequence = isinstance(structure, tuple | list) and not hasattr(structure, "_fields")
    is_leaf = isinstance(structure, int)
    names = _leaf_names(structure, "output" if is_sequence or is_leaf else "")
    ordered = [names[index] for index in range(out_spec.num_leaves)]
    return tuple(unique([f"{n}_out" if n in taken else n for n in ordered], taken))


def unique(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names, with `_1`, `_2` ... after those that `taken` or an earlier one has.

    unique(["x", "x", "y"], taken=["y"]) -> ["x", "x_1", "y_1"]
    """
    used, result = set(taken), []
    for name in names:
        candidate, count = name, 0
        while candidate in used:
            count += 1
            candidate = f"{name}_{count}"
        used.add(candidate)
        result.append(candidate)
    return result


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _leaf_names(value: object, prefix: str) -> dict[int, str]:
    """From the number that stands at a leaf to the leaf's path, joined by `_`."""
    return {
        index: "_".join(filter(None, (prefix, *(_key_text(key) for key in path))))
        for path, index in _leaves(value, ())
    }


def _leaves(value: object, path: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], int]]:
    """Leaves with their paths.

    A class may be registered without names for its children, as diffusers' outputs are: a mapping
    gives its keys then, any other class numbers.
    """
    if isinstance(value, int):
        yield path, value
        return
    try:
        leaves, _ = pytree.tree_flatten_with_path(value)
        yield from (((*path, *keys), index) for keys, index in leaves)
    except ValueError:
        children = pytree.tree_leaves(value, is_leaf=lambda child: child is not value)
        keys = list(value) if isinstance(value, Mapping) else range(len(children))
        for key, child in zip(keys, children, strict=True):
            yield from _leaves(child, (*path, key))


def _key_text(key: object) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
