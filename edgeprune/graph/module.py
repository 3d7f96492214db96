"""The captured graph as an `nn.Module` that behaves like the original.

`torch.export` gives a graph that raises on `train()` and `eval()`. Here the mode argument of every
batch_norm and dropout node reads the `training` flag of the submodule it came from, so both calls
work, for the whole model and for a part of it (`model.features.eval()` freezes that part).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import fx, nn
from torch.fx._pytree import tree_flatten_spec

from edgeprune.graph.graph_json import Specs, graph_from_json, graph_to_json, specs_of
from edgeprune.graph.operators import RECURRENT
from edgeprune.graph.outputs import know_dataclasses_of

aten = torch.ops.aten

# Which positional argument carries the mode.
_BATCH_NORM_MODE = 5
_DROPOUT_MODE = 2
_RECURRENT_DROPOUT, _RECURRENT_MODE = 5, 6
_DROPOUTS = (
    aten.alpha_dropout.default,
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_alpha_dropout.default,
    aten.feature_dropout.default,
)

# What a module is besides its graph.
_STATE = (
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_parameters",
    "meta",
    "training",
)

# Kept in `meta`: copies of a graph module keep nothing else.
_FIXED_BATCH = "edgeprune.fixed_batch"
_TABLES = "edgeprune.tables"


class CapturedModule(fx.GraphModule):
    """A captured graph: callable, trainable, deep-copyable, with the original parameter names.

    Buffers that were not persistent, and constants lifted out of the code, stay out of the state
    dict: `fx.GraphModule` alone would register both as persistent, also when it is deep-copied.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, class_name: str = "CapturedModule"
    ) -> None:
        super().__init__(root, graph, class_name)
        for path, module in list(self.named_modules()):
            original = _submodule(root, path)
            if original is None:
                continue
            kept_out = original._non_persistent_buffers_set
            for name in module._buffers:
                if name in kept_out or name not in original._buffers:
                    module._non_persistent_buffers_set.add(name)

    def __reduce__(
        self,
    ) -> tuple[Callable[..., CapturedModule], tuple[str, Specs, dict[str, object]]]:
        """For pickle and `torch.save`: the graph as text, and the tensors.

        fx would write Python code and trace it again on loading, which loses the training flags.
        """
        state = {name: self.__dict__[name] for name in _STATE}
        return _restored, (graph_to_json(self.graph, pickled=True), specs_of(self.graph), state)

    @property
    def fixed_batch(self) -> bool:
        """Whether it was traced at one batch size: it may run at another, and ignore a sample."""
        return bool(self.meta.get(_FIXED_BATCH, False))

    @fixed_batch.setter
    def fixed_batch(self, is_fixed: bool) -> None:
        self.meta[_FIXED_BATCH] = is_fixed

    @property
    def tables(self) -> tuple[str, ...]:
        """Buffers that hold what forward computes of nothing (see `graph.constants`)."""
        return tuple(self.meta.get(_TABLES, ()))

    @tables.setter
    def tables(self, names: tuple[str, ...]) -> None:
        self.meta[_TABLES] = names

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """`to`, `half` and the like; a table stays in the dtype it was made in if it would lose.

        Forward makes its frequencies in float32 whatever dtype the weights have.
        """
        before = {name: self._buffers[name] for name in self.tables if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, made in before.items():
            now = self._buffers[name]
            if made is not None and now is not None and not torch.equal(now.to(made), made):
                self._buffers[name] = made.to(now.device)
        return self


def _restored(text: str, specs: Specs, state: dict[str, object]) -> CapturedModule:
    for spec in specs:
        know_dataclasses_of(spec)
    root = nn.Module()
    root.__dict__.update(state)
    module = CapturedModule(root, graph_from_json(text, where="the pickled module", specs=specs))
    module.__dict__.update(state)
    return module


def _submodule(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def trains(node: fx.Node) -> bool:
    """Whether a batch_norm, dropout or recurrent node is written in training mode."""
    if node.target is aten.batch_norm.default:
        return node.args[_BATCH_NORM_MODE] is True
    if node.target in RECURRENT:
        # Without dropout between layers it does the same in both modes.
        return node.args[_RECURRENT_MODE] is True and bool(node.args[_RECURRENT_DROPOUT])
    return node.target in _DROPOUTS and node.args[_DROPOUT_MODE] is True


def add_training_flags(module: CapturedModule, original: nn.Module | None) -> None:
    """Make batch_norm, dropout and recurrent nodes read `training` of their submodule.

    In place; the caller recompiles. A BatchNorm whose mode is written into the code
    (`F.batch_norm(x, m, v)` in a frozen variant) is left as it is: only nodes of real BatchNorm
    modules follow `train()`. Where the original is not known (None), every batch_norm with running
    statistics counts as a real one.
    """
    for node in list(module.graph.nodes):
        if node.target is aten.batch_norm.default:
            path = _batch_norm_path(node, original)
            position = _BATCH_NORM_MODE
        elif node.target in _DROPOUTS and node.args[_DROPOUT_MODE] is False:
            path = cast("str | None", node.meta.get("module"))
            position = _DROPOUT_MODE
        elif node.target in RECURRENT:
            # It has no dropout of its own any more; cuDNN refuses gradients in eval mode.
            path = cast("str | None", node.meta.get("module"))
            position = _RECURRENT_MODE
        else:
            continue
        if path is None or not isinstance(node.args[position], bool):
            continue
        _ensure_submodule(module, path).training = False
        with module.graph.inserting_before(node):
            # create_node, as get_attr() warns of anything but tensors.
            flag = module.graph.create_node("get_attr", f"{path}.training" if path else "training")
        node.update_arg(position, flag)


def drop_unread(module: CapturedModule) -> None:
    """Delete tensors of submodules that the graph never reads, e.g. auxiliary heads.

    In place; the caller recompiles. A tensor beside one that is read stays
    (`num_batches_tracked`), and so does a second name of a tied tensor, so that the state dict
    keeps its names.
    """
    readers = [node for node in module.graph.nodes if node.op == "get_attr"]
    read = [node for node in readers if node.users]
    live_modules = {str(node.target).rpartition(".")[0] for node in read}
    live_tensors = {id(attribute(module, str(node.target))) for node in read}
    for node in readers:
        target = str(node.target)
        path, _, name = target.rpartition(".")
        if path in live_modules or id(attribute(module, target)) in live_tensors:
            continue
        module.graph.erase_node(node)
        delattr(module.get_submodule(path), name)


def _batch_norm_path(node: fx.Node, original: nn.Module | None) -> str | None:
    mean = node.args[3]
    if not isinstance(mean, fx.Node) or mean.op != "get_attr":
        return None
    path = str(mean.target).rpartition(".")[0]
    if original is None:
        return path
    owner = _submodule(original, path)
    return path if isinstance(owner, nn.modules.batchnorm._BatchNorm) else None


def _ensure_submodule(module: nn.Module, path: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = cast(nn.Module, module._modules[name])
    return module


def attribute(module: nn.Module, target: str) -> object:
    """The object that the get_attr `target` names, e.g. `features.0.weight`."""
    path, _, name = target.rpartition(".")
    return getattr(module.get_submodule(path), name)


def first_names(module: nn.Module) -> dict[int, str]:
    """The first state-dict name of every tensor, by `id`: a tied tensor has several."""
    names: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    return names


def set_tensor(module: nn.Module, target: str, tensor: torch.Tensor) -> None:
    """Replace the parameter, buffer or constant `target` by `tensor`, as what it was (in place)."""
    path, _, name = target.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, name)
    if isinstance(old, nn.Parameter):
        setattr(owner, name, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        setattr(owner, name, tensor)


def flat_inputs(
    module: fx.GraphModule, args: tuple[object, ...], kwargs: dict[str, object]
) -> list[object]:
    """The leaves of `(args, kwargs)` in placeholder order."""
    spec = module._in_spec
    return list(tree_flatten_spec((args, kwargs), spec))
