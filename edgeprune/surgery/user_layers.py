"""What the layers of torch.nn say of themselves, made true of their new weights.

`Linear.in_features` decides nothing that forward computes, but `repr` shows it and other code
reads it.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def describe_truly(module: nn.Module) -> None:
    """Set the sizes in the attributes of a torch.nn layer to those of its tensors (in place).

    `groups` and `num_groups` are taken as they are: they decide, and are traced.
    """
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Bilinear():
            shape = module.weight.shape
            module.out_features, module.in1_features, module.in2_features = shape
        case _ConvTransposeNd():
            module.in_channels = module.weight.shape[0]
            module.out_channels = module.weight.shape[1] * module.groups
        case _ConvNd():
            module.out_channels = module.weight.shape[0]
            module.in_channels = module.weight.shape[1] * module.groups
        case nn.Embedding() | nn.EmbeddingBag():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case nn.MultiheadAttention():
            _attention(module)
        case nn.RNNBase():
            _recurrent(module)
        case _:
            _norm(module)


def _norm(module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if weight is None:
        weight = getattr(module, "running_mean", None)
    if weight is None:
        return
    match module:
        case _NormBase():
            module.num_features = weight.shape[0]
        case nn.GroupNorm():
            module.num_channels = weight.shape[0]
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = tuple(weight.shape)


def _attention(module: nn.MultiheadAttention) -> None:
    module.embed_dim = module.out_proj.weight.shape[0]
    if module._qkv_same_embed_dim:
        module.kdim = module.vdim = module.embed_dim
    else:
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
    module.head_dim = module.embed_dim // module.num_heads


def _recurrent(module: nn.RNNBase) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    rows, module.input_size = shapes["weight_ih_l0"]
    module.hidden_size = rows // gates
    if module.proj_size:
        module.proj_size = shapes["weight_hh_l0"][1]
