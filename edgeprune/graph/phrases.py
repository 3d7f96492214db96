"""In words: how widths that meet at an operator are tied, and what would free a pinned one."""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

from edgeprune.graph.labels import Cause

_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_ADDED = ("add", "sub", "rsub", "baddbmm")
_MULTIPLIED = ("mul", "div")
_CONTRACTED = ("matmul", "bmm", "scaled_dot_product_attention", "einsum")

# How one width is tied to another.
READ_BY = "read by"
READS = "reads"
ADDED = "added to"
NORMALISED = "normalised by"
MULTIPLIED = "multiplied with"
BIASED = "has the bias"
CONTRACTED = "contracted with"
TIED = "all or nothing"
MEETS = "meets"

# The same, told from the bias or the norm.
REVERSED = {BIASED: "is the bias of", NORMALISED: "normalises"}


def operator_name(node: fx.Node) -> str:
    """`conv2d` for aten.conv2d.default; what the graph calls it otherwise."""
    if isinstance(node.target, OpOverload):
        return str(node.target).split(".")[1]
    return getattr(node.target, "__name__", str(node.target))


def phrase_of(node: fx.Node) -> str:
    """How two widths that meet element by element at `node` are tied."""
    name = operator_name(node).removesuffix("_")
    if name in _NORMS:
        return NORMALISED
    if name in _ADDED:
        return ADDED
    if name in _MULTIPLIED:
        return MULTIPLIED
    if name in _CONTRACTED:
        return CONTRACTED
    if "conv" in name or name in ("linear", "addmm"):
        return BIASED
    return MEETS


# By what a reason contains: what a person can do about it.
_ADVICE = (
    (
        "is an output of the model",
        "Nothing: whoever calls the model counts on the size of its outputs. A layer behind it, "
        "whose output is the model's, would free this one.",
    ),
    ("the kernel's size", "Nothing: the positions of a kernel are no units."),
    (
        "its width is that of data",
        "Nothing, where it is the input's: whoever calls the model gives it. Where it is a table "
        "or a constant, make that a parameter or a buffer of the module.",
    ),
    (
        "has no rule",
        "Rewrite that line with operators that edgeprune knows, or add a rule for the operator.",
    ),
    (
        "meets a value of full size",
        "Make the other operand a parameter or a buffer of the module, or of size 1 along this "
        "axis, so that it can shrink too.",
    ),
    ("a number is computed from it", "Compute that number from the input or outside of forward."),
    (
        "by number",
        "Read whole axes or slices on that line instead of single positions by number.",
    ),
    ("picked out", "Read a slice of more than one position on that line."),
    ("chosen by data", "Choose positions on that line along an axis that has no units."),
    (
        "softmax",
        "Take softmax on that line over another axis: over this one, every position depends on "
        "all others.",
    ),
    (
        "stand or fall together",
        "Split the layer: with a single group or head there is nothing between all and none.",
    ),
    ("in place", "Write that line without assigning into a slice."),
    ("statistics over this axis", "Drop --exact-only: then the norm is redefined on what is kept."),
)
_OTHERWISE = "Change that line so that the positions stay apart, or leave the width as it is."


def advice_for(cause: Cause) -> str:
    """One thing to do that would free what the cause pins."""
    return next((advice for part, advice in _ADVICE if part in cause.reason), _OTHERWISE)
