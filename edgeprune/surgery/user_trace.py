"""Run the user's own dense class once and note which attribute decides which size.

Integer attributes become tagged ones in a throw-away copy that shares the user's tensors; a torch
function mode sees every call of torch with them, and hands out tagged sizes of tensors.
"""

from __future__ import annotations

import contextlib
import copy
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from edgeprune.graph.inputs import Inputs, clone
from edgeprune.graph.outputs import only_known
from edgeprune.graph.provenance import running_line
from edgeprune.recipe.trial import same_buffers
from edgeprune.surgery.call import Call, Count, Function, Shape, template, untagged
from edgeprune.surgery.sightings import Sighting, Sightings
from edgeprune.surgery.tagged import Known, Log, Place, Tagged, expression_of
from edgeprune.surgery.uncached import uncached
from edgeprune.surgery.user_tensors import tensors_of

M = TypeVar("M", bound=nn.Module)
aten = torch.ops.aten

# Arguments that no shape betrays: where the graph's node and torch's function have them.
_COUNTS: dict[object, int] = {aten.group_norm.default: 1}

# Longer tuples, lists and dicts hold data (a vocabulary), no sizes.
_MOST_SIZES = 256
# What a module may hold that has attributes, and none of its own choice.
_NO_CONFIGURATION = (
    nn.Module,
    torch.Tensor,
    type,
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
)

# torch's own bookkeeping, and what is read of a tensor without computing.
_SIZES = ("shape", "size", "numel", "__len__", "nelement")


@dataclass(slots=True)
class Trace:
    """What the user's code did: its calls in order, and the comparisons it made of integers."""

    calls: list[Call] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    dense: dict[Place, int] = field(default_factory=dict)
    outputs: tuple[object, ...] = ()


def share(model: M) -> M:
    """A copy of every module and attribute, of no parameter and no buffer."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def trace(
    model: nn.Module,
    inputs: Inputs,
    sightings: Sightings,
    after: Mapping[str, Shape],
    graph: fx.Graph,
) -> Trace:
    """Run a copy of `model`, in eval mode, on `inputs`.

    `after` gives the shapes after surgery of its tensors by name; `graph` is the shrunk one.
    """
    seen = Trace()
    dummy = share(model)
    for place, container, name, entry in integers(dummy):
        seen.dense[place] = int(read(container, name, entry))
        write(container, name, entry, Tagged.of(seen.dense[place], place, seen.log))
    renew(dummy.eval(), {place.module for place in seen.dense})
    mode = _Watch(seen, sightings, {node.name: node for node in graph.nodes})
    for path, tensor in tensors_of(dummy).items():
        if path in after:
            mode.shapes[tensor] = after[path]
    copies = clone(inputs)
    for leaf in pytree.tree_leaves((copies.args, copies.kwargs)):
        if isinstance(leaf, torch.Tensor):
            mode.shapes[leaf] = tuple(leaf.shape)
    with torch.no_grad(), same_buffers(model), uncached(dummy), mode:
        result = dummy(*copies.args, **copies.kwargs)
    seen.outputs = tuple(pytree.tree_leaves(only_known(result)))
    return seen


def integers(model: nn.Module) -> Iterator[tuple[Place, dict[str, object], str, int | None]]:
    """Every integer attribute of every submodule, and of plain objects and dicts that these hold.

    The last three say where to write it: into the dict, under the name, as that entry. Of tuples
    and lists those of a size that sizes have.
    """
    for place, owner, name in _attributes(model):
        value = owner[name]
        if _is_integer(value):
            yield place, owner, name, None
        elif isinstance(value, tuple | list) and len(value) <= _MOST_SIZES:
            for entry in range(len(value) if all(map(_is_integer, value)) else 0):
                yield replace(place, entry=entry), owner, name, entry


def floats(model: nn.Module) -> Iterator[tuple[Place, dict[str, object], str]]:
    """Every float attribute, where `integers` looks for integers."""
    for place, owner, name in _attributes(model):
        if type(owner[name]) is float:
            yield place, owner, name


def _attributes(model: nn.Module) -> Iterator[tuple[Place, dict[str, object], str]]:
    held: set[int] = set()
    for path, module in model.named_modules():
        for owner, prefix in _objects(module, held):
            for name in list(owner):
                yield Place(path, prefix + name), owner, name


def _objects(module: nn.Module, held: set[int]) -> Iterator[tuple[dict[str, object], str]]:
    """Dicts of attributes: the module's, those of objects it holds, and dicts it holds."""
    yield vars(module), ""
    for name, value in vars(module).items():
        if name.startswith("_") or id(value) in held:
            continue
        held.add(id(value))
        if type(value) in (dict, OrderedDict):
            if len(value) <= _MOST_SIZES and all(isinstance(key, str) for key in value):
                yield value, f"{name}."
        elif not isinstance(value, _NO_CONFIGURATION):
            attributes = getattr(value, "__dict__", None)
            if isinstance(attributes, dict):
                yield attributes, f"{name}."


def renew(model: nn.Module, modules: Set[str]) -> None:
    """Let those of `modules` that keep a state of their own derive from it what forward reads.

    A Rearrange layer of einops copies and pickles as its pattern and `axes_lengths`, and computes
    with numbers that it derived from them.
    """
    for path in modules:
        module = model.get_submodule(path)
        kinds = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
        own = all(any(name in vars(k) for k in kinds) for name in ("__getstate__", "__setstate__"))
        if own and not (*module.parameters(), *module.buffers()):
            modes = [(inner, inner.training) for inner in module.modules()]
            # torch ships these two without annotations.
            with contextlib.suppress(Exception):  # one that refuses stays as it is
                state = copy.copy(module.__getstate__())  # type: ignore[no-untyped-call]
                module.__setstate__(state)  # type: ignore[no-untyped-call]
            for inner in module.modules():
                inner.training = dict(modes).get(inner, module.training)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and type(value) in (int, Tagged)


def read(container: dict[str, object], name: str, entry: int | None) -> int:
    """The integer at a place."""
    value = container[name]
    return cast(int, value if entry is None else cast("list[int]", value)[entry])


def write(container: dict[str, object], name: str, entry: int | None, value: int) -> None:
    """Put an integer at a place; a tuple is replaced by another of its kind."""
    if entry is None:
        container[name] = value
        return
    old = cast("tuple[int, ...] | list[int]", container[name])
    new = [*old[:entry], value, *old[entry + 1 :]]
    if hasattr(old, "_fields"):
        container[name] = type(old)(*new)
    else:
        container[name] = type(old)(new)


class _Watch(TorchFunctionMode):
    """Sees every call of torch. `shapes`: of tensors seen so far, what surgery leaves of them."""

    def __init__(self, seen: Trace, sightings: Sightings, shrunk: Mapping[str, fx.Node]) -> None:
        super().__init__()
        self.seen = seen
        self.sightings = sightings
        self.shrunk = shrunk
        self.shapes = WeakTensorKeyDictionary()

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Note a call and make it; look into Python functions of torch.nn.functional."""
        named = kwargs or {}
        opened = _opened(func)
        if opened is not None:
            with self:
                return opened(*args, **named)
        if _name(func) in _SIZES and isinstance(args[0], torch.Tensor):
            return self._sizes(func, args[0], args[1:], named)
        arguments = template((args, named), self._after)
        plain_args, plain_kwargs = cast(
            "tuple[tuple[object, ...], dict[str, object]]", untagged((args, named))
        )
        result = func(*plain_args, **plain_kwargs)
        self._note(func, arguments, result)
        return result

    def _after(self, tensor: torch.Tensor) -> Shape | None:
        found = self.shapes.get(tensor)  # type: ignore[no-untyped-call]
        return cast("Shape | None", found)

    def _sizes(
        self,
        func: Function,
        tensor: torch.Tensor,
        args: tuple[object, ...],
        named: dict[str, object],
    ) -> object:
        plain = cast("tuple[object, ...]", untagged(args))
        got = func(tensor, *plain, **named)
        after = self._after(tensor)
        if after is None:
            return got
        if isinstance(got, torch.Size):
            return torch.Size(self._size(n, size) for n, size in zip(got, after, strict=True))
        if _name(func) in ("numel", "nelement"):
            return self._size(cast(int, got), torch.Size(after).numel())
        dim = named.get("dim", plain[0] if plain else 0)
        return self._size(cast(int, got), after[cast(int, dim)])

    def _size(self, before: int, after: int) -> Tagged:
        return Tagged.of(before, Known(after), self.seen.log)

    def _note(self, func: Function, arguments: object, result: object) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not tensors and _name(func) != "__setitem__":
            return
        where = running_line()
        found = [self.sightings.find(tensor, where) for tensor in tensors]
        for tensor, sighting in zip(tensors, found, strict=True):
            self.shapes[tensor] = self._learnt(tensor, sighting)
        self.seen.calls.append(
            Call(
                function=func,
                args=arguments,
                results=tuple((tuple(t.shape), self._after(t)) for t in tensors),
                where=where,
                node=next((s.node for s in found if s is not None), ""),
                count=self._count(arguments, found),
            )
        )

    def _learnt(self, tensor: torch.Tensor, sighting: Sighting | None) -> Shape | None:
        return self._after(tensor) if sighting is None else sighting.after

    def _count(self, arguments: object, found: list[Sighting | None]) -> Count | None:
        node = self.shrunk.get(found[0].node) if found and found[0] is not None else None
        position = None if node is None else _COUNTS.get(node.target)
        if node is None or position is None or not isinstance(node.args[position], int):
            return None
        args, _ = cast("tuple[tuple[object, ...], object]", arguments)
        written = args[position]
        number = getattr(written, "expression", None) or expression_of(cast(int, written))
        return Count(number, cast(int, node.args[position]))


def _name(func: Function) -> str:
    name = str(getattr(func, "__name__", ""))
    owner = getattr(func, "__self__", None)
    return str(getattr(owner, "__name__", name)) if name == "__get__" else name


_OPENED: dict[Function, Function] = {}
_QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _opened(func: Function) -> Function | None:
    """A Python function of torch.nn.functional that goes on to its body; None for others.

    Its first lines ask whether a mode wants the call, and hand it over whole; a twin whose globals
    answer no runs its body, and the calls in there are seen one by one.
    """
    if not isinstance(func, types.FunctionType) or func.__module__ != F.__name__:
        return None
    if not set(_QUESTIONS) & set(func.__code__.co_names):
        return None  # max_pool2d asks in another function, which hands this one over
    if func not in _OPENED:
        deaf: Callable[..., bool] = lambda *_: False  # noqa: E731
        twin = types.FunctionType(
            func.__code__,
            {**vars(F), **dict.fromkeys(_QUESTIONS, deaf)},
            func.__name__,
            func.__defaults__,
            func.__closure__,
        )
        twin.__kwdefaults__ = func.__kwdefaults__
        _OPENED[func] = twin
    return _OPENED[func]
