"""What torch means and ONNX does not have, said in operators that both have.

Attention of other than four dims, a view of its layout, a squeeze of a dim that is not 1, a split
into parts of a size that follows the batch, complex numbers that move.
"""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument

from edgeprune.graph.module import CapturedModule
from edgeprune.graph.observe import Facts, TensorFact

aten = torch.ops.aten

# What torch.onnx does to real numbers alone, by its second argument: a dim, sizes, widths.
_BY_DIM = (aten.unsqueeze.default, aten.select.int, aten.index_select.default)
_BY_SIZES = (aten.expand.default, aten.reshape.default)
_PADS = (aten.pad.default, aten.constant_pad_nd.default)
_OF_COMPLEX = (*_BY_DIM, *_BY_SIZES, *_PADS)
_ATTENTION = aten.scaled_dot_product_attention.default
_FLAG = "enable_gqa"


def settle_(module: CapturedModule, facts: Facts) -> None:
    """Rewrite the graph of a captured module for torch's exporter; it computes the same (in place).

    facts: shape and dtype of every node.
    """
    for node in list(module.graph.nodes):
        if node.target is aten.squeeze.dim:
            shape, dim = _shape(facts, node.args[0]), node.args[1]
            # torch leaves such a dim as it is.
            if shape and isinstance(dim, int) and shape[dim] != 1:
                node.replace_all_uses_with(node.all_input_nodes[0])
                module.graph.erase_node(node)
        if node.target is aten.split.Tensor and isinstance(node.args[1], fx.Node):
            _settle_split_(module.graph, node, node.args[1])
        if node.target in _OF_COMPLEX and _is_complex(facts, node):
            _settle_complex_(module.graph, node)
    # Last: the squeezes that it adds are of values that `facts` does not know.
    _settle_attention_(module, facts)
    module.recompile()


def _settle_split_(graph: fx.Graph, node: fx.Node, size: fx.Node) -> None:
    """split(x, batch)[1] -> x[batch : 2 * batch]: a sequence of parts has no ranks in ONNX."""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    for part in list(node.users):
        number = part.args[1]
        if part.target is not operator.getitem or not isinstance(number, int):
            return
    for part in list(node.users):
        number = cast(int, part.args[1])
        with graph.inserting_before(part):
            start = graph.call_function(operator.mul, (size, number))
            stop = graph.call_function(operator.mul, (size, number + 1))
            cut = graph.call_function(aten.slice.Tensor, (node.args[0], dim, start, stop))
        part.replace_all_uses_with(cut)
        graph.erase_node(part)
    graph.erase_node(node)


def _settle_complex_(graph: fx.Graph, node: fx.Node) -> None:
    """Move complex numbers about as pairs of real ones, which are one more dim at the end.

    torch.onnx moves real numbers alone in these ways: unsqueeze(z, -1) of complex (4, 5) becomes
    view_as_complex(unsqueeze(pairs, -2)) of pairs (4, 5, 2).
    """
    given = node.args[1]
    moved: list[Argument]
    if node.target in _BY_DIM and isinstance(given, int):
        moved = [given if given >= 0 else given - 1, *node.args[2:]]
    elif node.target in _BY_SIZES and isinstance(given, list | tuple):
        moved = [[*given, 2]]
    elif node.target in _PADS and isinstance(given, list | tuple) and _adds_zeros(node):
        moved = [[0, 0, *given]]
    else:
        return
    target = aten.constant_pad_nd.default if node.target in _PADS else node.target
    with graph.inserting_before(node):
        pairs = graph.call_function(aten.view_as_real.default, (node.args[0],))
        result = graph.call_function(cast("torch._ops.OpOverload", target), (pairs, *moved))
        numbers = graph.call_function(aten.view_as_complex.default, (result,))
    numbers.meta = dict(node.meta)
    node.replace_all_uses_with(numbers)
    graph.erase_node(node)


def _adds_zeros(node: fx.Node) -> bool:
    rest = list(node.args[2:])
    if node.target is aten.pad.default and rest and rest.pop(0) != "constant":
        return False
    return not any(rest) and not any(node.kwargs.values())


def _is_complex(facts: Facts, node: fx.Node) -> bool:
    fact = facts.get(node.name)
    return isinstance(fact, TensorFact) and fact.dtype.is_complex


def _settle_attention_(module: CapturedModule, facts: Facts) -> None:
    """Let no view depend on how attention lays out its result, and give it four dims (in place).

    As one op it gives (N, heads, L, dim) laid out as (N, L, heads, dim), so that a view may follow
    a transposition; in the simpler ops that torch.onnx spells it in, it does not, and a view that
    was taken in between is refused. The copies become Identity, which the optimiser drops. Of
    blocks (N, heads, blocks, L, dim) heads and blocks become one dim; (N, L, dim) is one head.
    """
    for node in list(module.graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        if node.target is _ATTENTION:
            result = _in_four_dims_(module.graph, node, facts)
            with module.graph.inserting_after(result):
                copied = module.graph.call_function(aten.clone.default, (result,))
            result.replace_all_uses_with(copied)
            copied.args = (result,)
            copied.kwargs = {"memory_format": torch.contiguous_format}


def _in_four_dims_(graph: fx.Graph, node: fx.Node, facts: Facts) -> fx.Node:
    """The node of attention's result, which is another where the dims were not four."""
    query, key, value, *rest = node.args
    shape = _shape(facts, query)
    grouped = bool(node.kwargs.get(_FLAG))
    if shape is None or len(shape) == 4 or len(shape) < 3 or grouped:
        return node
    is_flat = len(shape) == 3
    with graph.inserting_before(node):

        def four(operand: Argument) -> fx.Node:
            if is_flat:
                return graph.call_function(aten.unsqueeze.default, (operand, 1))
            return graph.call_function(aten.flatten.using_ints, (operand, 1, -3))

        mask = rest[0] if rest else node.kwargs.get("attn_mask")
        wide = _shape(facts, mask)
        if isinstance(mask, fx.Node) and wide is not None and len(wide) > 2:
            for _ in range(len(shape) - len(wide)):
                mask = graph.call_function(aten.unsqueeze.default, (mask, 0))
            if not is_flat:
                # The first dim, the batch, is left as it is: 1 serves any.
                sizes = [-1, *shape[1:-2], -1, -1]
                mask = graph.call_function(aten.expand.default, (mask, sizes))
            mask = four(mask)
        heads = [four(operand) for operand in (query, key, value)]
    node.args = (*heads, mask, *rest[1:]) if rest else tuple(heads)
    if not rest and "attn_mask" in node.kwargs:
        node.kwargs = {**node.kwargs, "attn_mask": mask}
    with graph.inserting_after(node):
        back = graph.call_function(aten.squeeze.dim, (node, 1))
    node.replace_all_uses_with(back)
    if is_flat:
        back.args = (node, 1)
        return back
    back.target = aten.unflatten.int
    back.args = (node, 1, [-1, *shape[2:-2]])
    return back


def _shape(facts: Facts, node: object) -> tuple[int, ...] | None:
    fact = facts.get(node.name) if isinstance(node, fx.Node) else None
    return fact.shape if isinstance(fact, TensorFact) else None
