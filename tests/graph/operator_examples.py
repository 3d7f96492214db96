"""One small worked call of every operator that has a rule: shapes of its tensors, and its literals.

Tensors are described, not made: `F(2, 4, 6)` is a float operand that a test may feed from a layer,
from data or from a tensor of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
import torchvision
import transformers.integrations.moe
from torch._ops import OpOverload

aten = torch.ops.aten
# Importing them brings their operators.
assert torchvision.ops
assert transformers.integrations.moe

Kind = Literal["float", "index", "bool", "complex"]
Domain = Literal["all", "positive", "unit", "signed unit"]


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor argument: its shape, what it holds, and in which range (`below`: of indices)."""

    shape: tuple[int, ...]
    kind: Kind = "float"
    domain: Domain = "all"
    below: int = 0


Argument: TypeAlias = "Operand | torch.Tensor | Sequence[Argument] | object"


@dataclass(frozen=True, slots=True)
class Example:
    """A call. `torch.Tensor` arguments are fixed constants of the model.

    `partner`: what the result is multiplied with, where it says nothing of any operand's values.
    """

    args: tuple[Argument, ...]
    kwargs: dict[str, object] = field(default_factory=dict)
    partner: Operand | None = None


def F(*shape: int, domain: Domain = "all") -> Operand:  # noqa: N802
    """Floats."""
    return Operand(shape, "float", domain)


def I(*shape: int, below: int) -> Operand:  # noqa: E743, N802
    """Numbers from 0 to `below` - 1."""
    return Operand(shape, "index", below=below)


def B(*shape: int) -> Operand:  # noqa: N802
    """Truth values."""
    return Operand(shape, "bool")


def Z(*shape: int) -> Operand:  # noqa: N802
    """Complex numbers."""
    return Operand(shape, "complex")


EXAMPLES: dict[OpOverload, tuple[Example, ...]] = {}


def call(names: str, *args: Argument, partner: Operand | None = None, **kwargs: object) -> None:
    """One call of each of the named overloads: `call("sum.default flip", F(2, 4), [1])`.

    Of another package than ATen with its name: `call("torchvision::nms", ...)`.
    """
    for name in names.split():
        packet, _, overload = name.rpartition("::")[2].partition(".")
        package = getattr(torch.ops, name.partition("::")[0]) if "::" in name else aten
        target = getattr(getattr(package, packet), overload or "default")
        EXAMPLES[target] = (*EXAMPLES.get(target, ()), Example(args, kwargs, partner))


X = F(2, 4, 6)
UNIT = F(2, 4, 6, domain="unit")

# Element by element.
call("__and__.Tensor __or__.Tensor __xor__.Tensor", B(2, 4, 6), B(2, 4, 6))
call("__and__.Tensor __or__.Tensor __xor__.Tensor", B(2, 4, 6), B(6))
call("__and__.Scalar __or__.Scalar __xor__.Scalar", I(2, 4, 6, below=7), 3)
call("absolute arcsinh arctan fix negative special_erf special_exp2 special_expit", X)
call("arccos arcsin arctanh special_log1p", UNIT)
call("hardswish log_sigmoid zero_ rrelu", X)
call("arccosh", F(2, 4, 6, domain="positive"))
call("arctan2 complex rsub.Tensor add.Tensor multiply.Tensor subtract.Tensor copy_", X, X)
call("arctan2 rsub.Tensor add.Tensor multiply.Tensor subtract.Tensor copy_", X, F(6))
call("rsub.Tensor add.Tensor multiply.Tensor subtract.Tensor", F(4, 1), X)
call("greater.Tensor greater_equal.Tensor less.Tensor less_equal.Tensor not_equal.Tensor", X, X)
call("greater.Scalar greater_equal.Scalar less.Scalar less_equal.Scalar not_equal.Scalar", X, 0.2)
call("divide.Tensor floor_divide", X, F(2, 4, 6, domain="positive"))
call("divide.Tensor floor_divide", X, F(2, 1, 6, domain="positive"))
call("divide.Tensor_mode", X, F(2, 4, 6, domain="positive"), rounding_mode="floor")
call("divide.Scalar floor_divide.Scalar multiply.Scalar subtract.Scalar", X, 0.7)
call("divide.Scalar_mode", X, 0.7, rounding_mode="floor")
call("masked_fill.Tensor", X, B(2, 4, 6), F())
call("masked_fill.Tensor", X, B(6), F())
call("polar", F(2, 4, 6, domain="positive"), X)
call("where.Scalar", B(2, 4, 6), 0.5, -0.5)
call("where.ScalarOther", B(2, 4, 6), X, 0.5)
call("where.ScalarSelf", B(2, 4, 6), 0.5, X)
call("where.ScalarOther", B(4, 1), X, 0.5)
call("fill_.Scalar", X, 0.5)
call("fill_.Tensor", X, F())
call("prelu", X, F(4))
call("prelu", F(3, 8), F(8))
call("alias clone contiguous detach detach_ lift_fresh_copy", X)
call("alpha_dropout dropout dropout_ feature_alpha_dropout feature_dropout", X, 0.5, False)
call("to.device", X, torch.device("cpu"), torch.float64)
call("to.dtype", X, torch.float64)
call("to.dtype_layout _to_copy", X, dtype=torch.float64)
call("to.other type_as", X, X)
call("to.other type_as", X, F(3, 8))
call("zeros_like ones_like empty_like", X, partner=X)
call("full_like", X, 0.5, partner=X)

# Tensors that are made.
call("empty.memory_format ones zeros", [4, 6], partner=F(4, 6))
call("full", [4, 6], 0.5, partner=F(4, 6))
call("new_empty new_ones new_zeros", X, [4, 6], partner=F(4, 6))
call("new_full", X, [4, 6], 0.5, partner=F(4, 6))
call("arange", 6, partner=F(6))
call("arange.start", 1, 7, partner=F(6))
call("arange.start_step", 1, 13, 2, partner=F(6))
call("linspace", 0.0, 1.0, 6, partner=F(6))
call("scalar_tensor", 0.5, partner=F(6))

# Elements that move.
call("chunk tensor_split.sections", X, 2, 2)
call("tensor_split.indices", X, [2], 2)
call("channel_shuffle", F(2, 6, 2, 3), 2)
call("flatten.using_ints", X, 1, 2)
call("flatten.using_ints", F(2, 3, 4, 2), 2, 3)
call("flip", X, [2])
call("flip", X, [1, 2])
call("fliplr flipud mT ravel squeeze", X)
call("squeeze", F(2, 1, 6))
call("moveaxis.int movedim.int swapaxes swapdims transpose.int", X, 1, 2)
call("moveaxis.intlist movedim.intlist", X, [1, 2], [2, 1])
call("narrow", X, 2, 1, 3)
call("narrow", X, 1, 0, 2)
call("numpy_T t", F(4, 6))
call("permute", X, [2, 0, 1])
call("reshape view _unsafe_view", X, [2, 24])
call("reshape view _unsafe_view", X, [2, 4, 2, 3])
call("reshape view _unsafe_view", X, [8, -1])
call("rot90", X, 1, [1, 2])
call("slice.Tensor", X, 2, 0, 4)
call("slice.Tensor", X, 2, 1, 6, 2)
call("split.Tensor", X, 4, 2)
call("split.sizes split_with_sizes", X, [2, 4], 2)
call("squeeze.dim squeeze_.dim", F(2, 1, 6), 1)
call("squeeze.dims", F(2, 1, 6), [1])
call("tile", X, [1, 2, 1])
call("tile", F(2, 1, 6), [1, 4, 2])
call("unflatten.int", X, 2, [2, 3])
call("unsqueeze unsqueeze_", X, 1)
call("select.int", X, 1, 2)
call("unbind.int", X, 1)
call("view_as_complex", F(2, 4, 2))
call("view_as_real", Z(2, 4))
call("real imag conj resolve_conj resolve_neg", Z(2, 4, 6))

# Fourier transforms.
call("fft_fft fft_rfft fft_ihfft", X, None, 1)
call("fft_ifft fft_irfft fft_hfft", Z(2, 4, 6), None, 2)
call("fft_fft fft_rfft", X, 5, -1)
call("fft_fft2 fft_rfft2 fft_fftn fft_rfftn", F(3, 4, 6), None, [0, 2])
call("fft_fft2 fft_rfft2", F(2, 4, 5, 6))
call("fft_fftn fft_rfftn", F(2, 4, 6), [4, 5])
call("fft_ifft2 fft_irfft2 fft_ifftn fft_irfftn", Z(2, 4, 6), None, [1, 2])
call("fft_fftshift fft_ifftshift", X, [1])
call("fft_fftshift fft_ifftshift", X)
call("roll", X, [2], [2])
call("roll", X, [2])
call("unfold", X, 2, 2, 2)
call("unfold", X, 2, 3, 1)
call("pixel_shuffle", F(2, 8, 2, 3), 2)
call("pixel_unshuffle", F(2, 3, 4, 2), 2)
call("diagonal", F(2, 6, 6), 0, 1, 2)
call("diagonal", F(2, 4, 6), 1, 1, 2)
call("view_as reshape_as", X, F(2, 24))
call("view_as reshape_as", X, X)
call("expand broadcast_to", F(2, 1, 6), [2, 4, 6])
call("expand broadcast_to", F(6), [4, 6])
call("expand_as", F(2, 1, 6), X)
call("expand_as", F(6), X)
call("broadcast_tensors", [X, F(2, 1, 6)])
call("broadcast_tensors", [F(2, 4, 1), F(6)])
call("repeat", X, [1, 2, 1])
call("repeat", F(2, 1, 6), [1, 4, 2])
call("repeat_interleave.self_int", X, 2, 2)
call("repeat_interleave.self_int", F(2, 1, 6), 4, 1)
call("repeat_interleave.self_Tensor", X, torch.tensor([1, 0, 2, 3]), 1)
call("constant_pad_nd", X, [1, 1, 0, 1])
call("pad", X, [1, 1], "reflect")
call("pad", X, [1, 1, 0, 1])
call("cat concat", [X, X], 1)
call("cat concat", [X, F(2, 3, 6)], 1)
call("cat concat", [X, F(2, 4, 2), X], 2)
call("stack", [X, X], 1)
call("stack", [X, X, X], -1)
call("glu", X, 2)
call("glu", X, 1)

# Read and written by number.
call("embedding", F(7, 6), I(2, 4, below=7))
_OFFSETS = torch.tensor([0, 3])
call("embedding_bag", F(7, 6), I(8, below=7), _OFFSETS)
call("embedding_bag", F(7, 6), I(8, below=7), _OFFSETS, False, 0, False, F(8))
call("embedding_bag.padding_idx", F(7, 6), I(8, below=7), _OFFSETS, False, 2, False, None, False, 1)
call("gather", X, 1, I(2, 3, 6, below=4))
call("gather", X, 2, I(2, 4, 5, below=6))
call("gather", X, 1, I(2, 3, 4, below=4))
call("take_along_dim", X, I(2, 3, 1, below=4), 1)
call("take_along_dim", X, I(2, 3, 6, below=4), 1)
call("take_along_dim", X, I(5, below=48))
call("index_select", X, 2, I(4, below=6))
call("index_select", X, 1, I(5, below=4))
call("index.Tensor", X, [None, I(5, below=4)])
call("index.Tensor", X, [None, I(5, below=4), I(5, below=6)])
call("index.Tensor", X, [I(3, below=2), None, I(3, below=6)])
call("index_add index_copy", X, 1, I(3, below=4), F(2, 3, 6))
call("index_fill.int_Scalar", X, 1, I(2, below=4), 0.5)
call("index_fill.int_Tensor", X, 1, I(2, below=4), F())
call("index_put", X, [None, I(3, below=4)], F(2, 3, 6))
call("index_put", X, [None, I(3, below=4)], F(6))
call("index_put", X, [I(3, below=2), None, I(3, below=6)], F(3, 4))
call("index_put", X, [B(2, 4)], F(6))
call("scatter.src scatter_add", X, 1, I(2, 3, 6, below=4), F(2, 3, 6))
call("scatter.src scatter_add", X, 1, I(2, 3, 4, below=4), X)
call("scatter.value", X, 1, I(2, 3, 6, below=4), 0.5)
call("scatter.reduce", X, 1, I(2, 3, 6, below=4), F(2, 3, 6), reduce="add")
call("scatter.value_reduce", X, 1, I(2, 3, 6, below=4), 0.5, reduce="multiply")
call("scatter_reduce.two", X, 1, I(2, 3, 6, below=4), F(2, 3, 6), "amax")
call("masked_scatter", X, B(2, 4, 6), X)
call("masked_scatter", X, B(6), X)
call("triu tril", F(2, 4, 5, 6))
call("argsort", X, 1)
call("argsort.stable", X, stable=True, dim=1)
call("one_hot", I(2, 4, below=5), 5)
call("diff", X, 1, 1)
call("diff", X, 1, 1, F(2, 1, 6), F(2, 2, 6))
call("diff", X, 1, 2)

# Reductions.
call("sum mean", X)
call("max min aminmax", X)
for _dims in ([1], [2], [1, 2], [0]):
    call("sum.dim_IntList mean.dim amax amin", X, _dims)
    call("sum.dim_IntList mean.dim amax amin", X, _dims, True)
    call("linalg_vector_norm", X, 2, _dims)
    call("linalg_vector_norm", X, 0, _dims)
    call("norm.ScalarOpt_dim", X, 2, _dims, True)
    call("var.dim std.dim var_mean.dim std_mean.dim", X, _dims)
    call("var.correction std.correction var_mean.correction std_mean.correction", X, _dims)
for _dim in (1, 2):
    call("argmax argmin prod.dim_int logsumexp", X, _dim)
    call("max.dim min.dim median.dim nanmedian.dim mode sort", X, _dim)
    call("aminmax", X, dim=_dim)
    call("topk kthvalue", X, 2, _dim)
    call("sort.stable", X, stable=True, dim=_dim)
    call("softmax.int log_softmax.int cumsum", X, _dim)
    call("_softmax _log_softmax", X, _dim, False)
call("norm.Scalar", X, 2)
call("norm.ScalarOpt_dim_dtype", X, 2, [2], False, dtype=torch.float64)
call("frobenius_norm.dim", X, [1, 2])
call("linalg_norm", X, None, [2])
call("linalg_norm", X, 1, [1, 2])
call("linalg_norm.ord_str", X, "fro", [1, 2])
call("linalg_matrix_norm", X, 1)
call("linalg_matrix_norm.str_ord", X, "nuc")
call("var std var_mean std_mean", X)

# Contractions.
call("linear", X, F(5, 6), F(5))
call("linear", X, F(5, 6))
call("addmm", F(4, 5), F(4, 6), F(6, 5))
call("addmm", F(5), F(4, 6), F(6, 5))
call("addmv", F(4), F(4, 6), F(6))
call("baddbmm", F(2, 4, 5), F(2, 4, 6), F(2, 6, 5))
call("baddbmm", F(1, 5), F(2, 4, 6), F(2, 6, 5))
call("bmm matmul", F(2, 4, 6), F(2, 6, 5))
call("matmul", F(2, 4, 6), F(6))
call("matmul", F(2, 3, 4, 6), F(6, 5))
call("matmul", F(6), F(6))
call("mm", F(4, 6), F(6, 5))
call("mv", F(4, 6), F(6))
call("dot", F(6), F(6))
call("ger outer", F(4), F(6))
call("bilinear", F(2, 4), F(2, 6), F(5, 4, 6), F(5))
call("tensordot", F(2, 4, 6), F(6, 4, 5), [1, 2], [1, 0])
call("einsum", "bij,bjk->bik", [F(2, 4, 6), F(2, 6, 5)])
call("einsum", "bij,bij->bj", [X, X])
call("einsum", "...c,oc->...o", [X, F(5, 6)])
call("einsum", "bii->bi", [F(2, 6, 6)])
call("einsum", "bij,jk,bkl->bil", [F(2, 3, 4), F(4, 6), F(2, 6, 5)])
call("cosine_similarity", X, X, 1)
call("cosine_similarity", X, F(2, 1, 6), 2)
call("pairwise_distance", X, X)
call("pairwise_distance", X, F(6))
call("cdist", F(2, 4, 6), F(2, 5, 6))
call("_cdist_forward", F(2, 4, 6), F(2, 5, 6), 2.0, None)

# Convolutions.
call("conv1d", F(2, 6, 5), F(4, 6, 3), F(4))
call("conv1d", F(2, 6, 5), F(4, 3, 1), None, [1], [0], [1], 2)
call("conv1d.padding", F(2, 6, 5), F(4, 6, 3), F(4), [1], "same")
call("conv2d", F(2, 6, 3, 4), F(4, 6, 2, 2), F(4))
call("conv2d", F(2, 6, 3, 4), F(6, 1, 2, 2), F(6), [1, 1], [0, 0], [1, 1], 6)
call("conv2d", F(2, 6, 3, 4), F(4, 3, 1, 1), F(4), [1, 1], [0, 0], [1, 1], 2)
call("conv2d.padding", F(2, 6, 3, 4), F(4, 6, 2, 2), F(4), [1, 1], "same")
call("conv3d", F(2, 6, 2, 3, 2), F(4, 6, 2, 1, 1), F(4))
call("conv3d.padding", F(2, 6, 2, 3, 2), F(4, 6, 1, 1, 1), F(4), [1, 1, 1], "valid")
call("conv_transpose1d", F(2, 6, 5), F(6, 4, 3), F(4))
call("conv_transpose2d.input", F(2, 6, 3, 4), F(6, 4, 2, 2), F(4))
call("conv_transpose2d.input", F(2, 6, 3, 4), F(6, 2, 2, 2), F(4), [1, 1], [0, 0], [0, 0], 2)
call("conv_transpose3d.input", F(2, 6, 2, 3, 2), F(6, 4, 1, 2, 1), F(4))

# Norms.
_C = F(6)
call("batch_norm", F(2, 6, 4), _C, _C, _C, F(6, domain="positive"), False, 0.1, 1e-5, False)
call("batch_norm", F(4, 6), None, None, _C, F(6, domain="positive"), False, 0.1, 1e-5, False)
call("instance_norm", F(2, 6, 4), _C, _C, None, None, True, 0.1, 1e-5, False)
call("group_norm", F(2, 6, 4), 3, _C, _C)
call("group_norm", F(2, 6, 4), 1, _C, _C)
call("group_norm", F(2, 6, 4), 2)
call("layer_norm", X, [6], _C, _C)
call("layer_norm", X, [6])
call("layer_norm", X, [4, 6], F(4, 6))
call("rms_norm", X, [6], _C)
call("rms_norm", X, [6])

# Attention.
_Q, _K = F(2, 3, 4, 6), F(2, 3, 5, 6)
call("scaled_dot_product_attention", _Q, _K, _K)
call("scaled_dot_product_attention", _Q, _K, _K, F(4, 5))
call("scaled_dot_product_attention", _Q, _K, _K, B(2, 3, 4, 5))
call("scaled_dot_product_attention", F(2, 4, 4, 6), F(2, 2, 5, 6), F(2, 2, 5, 6), enable_gqa=True)

# Rows sorted by expert: two, none and four.
call("transformers::grouped_mm_fallback", F(6, 4), F(3, 4, 5), torch.tensor([2, 2, 6]))

# Windows.
call("max_unpool2d", F(2, 4, 2, 2), I(2, 4, 2, 2, below=16), [4, 4])
_PLACES = I(2, 4, 2, 2, 2, below=64)
call("max_unpool3d", F(2, 4, 2, 2, 2), _PLACES, [4, 4, 4], [2, 2, 2], [0, 0, 0])
for _n, _size in ((1, (6,)), (2, (4, 6)), (3, (4, 2, 4))):
    _image = F(2, 4, *_size)
    _twos, _double = [2] * _n, [2 * size for size in _size]
    call(f"avg_pool{_n}d max_pool{_n}d", _image, _twos)
    call(f"max_pool{_n}d_with_indices", _image, _twos)
    call(f"adaptive_avg_pool{_n}d adaptive_max_pool{_n}d", _image, _twos)
    call(f"upsample_nearest{_n}d.vec", _image, _double, None)
    smooth = {1: "linear1d", 2: "bilinear2d", 3: "trilinear3d"}[_n]
    call(f"upsample_{smooth}.vec", _image, _double, False, None)
call("upsample_bicubic2d.vec _upsample_bilinear2d_aa.vec", F(2, 4, 4, 6), [8, 12], False, None)
call("_upsample_bicubic2d_aa.vec", F(2, 4, 4, 6), [8, 12], False, None)
call("grid_sampler", F(2, 4, 3, 3), F(2, 3, 3, 2, domain="signed unit"), 0, 0, False)
_REGIONS = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 0, 3, 2], [1, 0, 1, 2, 3]])
call("torchvision::roi_align", F(2, 4, 4, 4), _REGIONS, 1.0, 2, 3, 2, True)
call("torchvision::roi_pool", F(2, 4, 4, 4), _REGIONS, 1.0, 2, 3)
_STEPS = (1, 1, 1, 1, 1, 1)
_CHANNELS = F(2, 4, 3, 3), F(6, 4, 3, 3), F(2, 18, 3, 3), F(2, 9, 3, 3), F(6)
call("torchvision::deform_conv2d", *_CHANNELS, *_STEPS, 1, 1, True)
_CHANNELS = F(2, 4, 3, 3), F(6, 4, 3, 3), F(2, 36, 3, 3), F(2, 18, 3, 3), F(6)
call("torchvision::deform_conv2d", *_CHANNELS, *_STEPS, 1, 2, True)
_CHANNELS = F(2, 4, 3, 3), F(6, 2, 3, 3), F(2, 18, 3, 3), F(2, 9, 3, 3), F(6)
call("torchvision::deform_conv2d", *_CHANNELS, *_STEPS, 2, 1, True)
call("col2im", F(2, 12, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1])
call("im2col", F(2, 4, 3, 4), [2, 2], [1, 1], [0, 0], [1, 1])

# Recurrent layers and cells: gates of 4 (LSTM), 3 (GRU) and 1 (Elman).
for _name, _gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
    _weights = (F(5 * _gates, 6), F(5 * _gates, 5), F(5 * _gates), F(5 * _gates))
    _state, _row = F(1, 2, 5), F(2, 5)
    _states = [_state, _state] if _name == "lstm" else _state
    _rows = [_row, _row] if _name == "lstm" else _row
    for _first in (False, True):
        _x = F(2, 4, 6) if _first else F(4, 2, 6)
        call(
            f"{_name}.input",
            *(_x, _states, list(_weights), True, 1, 0.0, False, False, _first),
        )
    call(f"{_name}_cell", F(2, 6), _rows, *_weights)
    call(f"{_name}_cell", F(2, 6), _rows, *_weights[:2])

# Some of those that torch itself tags as element by element.
POINTWISE = """add.Tensor mul.Tensor sub.Tensor maximum minimum max.other min.other fmax fmin atan2
    hypot copysign.Tensor eq.Tensor ge.Tensor gt.Tensor le.Tensor lt.Tensor ne.Tensor
    logaddexp clamp_max.Tensor clamp_min.Tensor logical_and logical_or logical_xor heaviside
    tanh_backward sigmoid_backward gelu_backward"""
call(POINTWISE, X, X)
call("add.Tensor mul.Tensor maximum gt.Tensor", X, F(6))
call("add.Tensor mul.Tensor maximum gt.Tensor", F(2, 1, 6), F(4, 6))
call("addcmul clamp.Tensor clip.Tensor", X, X, X)
call("addcmul", X, F(6), F(4, 1))
call("addcdiv", X, X, F(2, 4, 6, domain="positive"))
call("div.Tensor true_divide.Tensor fmod.Tensor remainder.Tensor", X, F(6, domain="positive"))
call("pow.Tensor_Tensor", F(2, 4, 6, domain="positive"), X)
call("xlogy.Tensor", X, F(2, 4, 6, domain="positive"))
call("lerp.Tensor", X, X, X)
call("lerp.Scalar", X, X, 0.3)
call("where.self", B(2, 4, 6), X, X)
call("where.self", B(4, 1), X, F(6))
call("masked_fill.Scalar", X, B(2, 4, 6), 0.5)
call("bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor", B(2, 4, 6), B(2, 4, 6))
call("relu gelu silu sigmoid tanh exp cos abs neg sign round square", X)
call("add.Scalar mul.Scalar sub.Scalar rsub.Scalar gt.Scalar clamp_min", X, 0.3)
call("leaky_relu elu softplus hardtanh", X)
