"""The models of bench/zoo.txt, built with lively random weights; nothing is downloaded.

A default initialisation hides faults: transformers' standard deviation of 0.02 leaves attention
inert, an untrained head is zero, equal norm weights make slices alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

# Before any of them is imported: no model may ask the network for a file.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

M = TypeVar("M", bound=nn.Module)

ZOO = Path(__file__).with_name("zoo.txt")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the zoo. `shape` is the example input as written: `2x3x224x224`, `ids 2x16`."""

    library: str
    model: str
    shape: str

    @property
    def key(self) -> str:
        """`timm/levit_384_s8`, what reports and files call it."""
        return f"{self.library}/{self.model}"


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A model in eval mode with its example inputs."""

    model: nn.Module
    args: tuple[object, ...]
    kwargs: dict[str, object]


def entries(path: Path = ZOO) -> tuple[Entry, ...]:
    """The lines of the zoo, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    return tuple(Entry(*row) for row in rows)


def build(entry: Entry, seed: int = 0) -> Built:
    """The model of a line, with `lively` weights, and its inputs. The same for the same seed."""
    torch.manual_seed(seed)
    built = _BUILDERS[entry.library](entry)
    lively(built.model, seed)
    built.model.eval()
    return built


def lively(model: M, seed: int = 0) -> M:
    """The model itself with random weights of unit gain, BatchNorm statistics, distinct vectors.

    Frozen and tied parameters keep that they are; integer buffers keep their values.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / max(parameter[0].numel(), 1) ** 0.5)
            else:
                parameter.add_(0.2 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def _image(entry: Entry) -> tuple[object, ...]:
    return (torch.randn(_sizes(entry.shape)),)


def _torchvision(entry: Entry) -> Built:
    import torchvision

    options: dict[str, object] = {"weights": None}
    builder = torchvision.models.get_model_builder(entry.model)
    if "segmentation" in builder.__module__:
        options["weights_backbone"] = None
    if entry.model in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    size = _sizes(entry.shape)[-1]
    if entry.model.startswith(("vit", "maxvit")) and size != 224:
        options["image_size" if entry.model.startswith("vit") else "input_size"] = (
            size if entry.model.startswith("vit") else (size, size)
        )
    return Built(builder(**options), _image(entry), {})


def _timm(entry: Entry) -> Built:
    import timm

    size = _sizes(entry.shape)[-1]
    try:
        model = timm.create_model(entry.model, pretrained=False, img_size=size)
    except TypeError:
        # A network that takes any size has no such argument.
        model = timm.create_model(entry.model, pretrained=False)
    return Built(model, _image(entry), {})


def _ids(entry: Entry, vocabulary: int) -> tuple[object, ...]:
    return (torch.randint(0, vocabulary, _sizes(entry.shape.removeprefix("ids "))),)


def _transformers(entry: Entry) -> Built:
    return _TRANSFORMERS[entry.model](entry)


def _bert(entry: Entry) -> Built:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=5,
    )
    return Built(BertForSequenceClassification(config), _ids(entry, 100), {})


def _vit(entry: Entry) -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=64,
        patch_size=16,
        num_labels=10,
    )
    return Built(ViTForImageClassification(config), _image(entry), {})


def _segformer(entry: Entry) -> Built:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 64, 96, 128],
        num_attention_heads=[1, 2, 4, 8],
        decoder_hidden_size=64,
        num_labels=7,
    )
    return Built(SegformerForSemanticSegmentation(config), _image(entry), {})


def _convnextv2(entry: Entry) -> Built:
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    config = ConvNextV2Config(depths=[1, 1, 2, 1], hidden_sizes=[32, 48, 64, 96], num_labels=10)
    return Built(ConvNextV2ForImageClassification(config), _image(entry), {})


def _wav2vec2(entry: Entry) -> Built:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=32,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32, 32, 32),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return Built(Wav2Vec2ForCTC(config), _image(entry), {})


def _whisper(entry: Entry) -> Built:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        num_mel_bins=80,
        max_source_positions=50,
    )
    return Built(WhisperEncoder(config), _image(entry), {})


def _clip(entry: Entry) -> Built:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
    )
    return Built(CLIPVisionModelWithProjection(config), _image(entry), {})


def _gpt2(entry: Entry) -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=100, n_positions=64, n_embd=64, n_layer=3, n_head=4)
    return Built(GPT2LMHeadModel(config), _ids(entry, 100), {"use_cache": False})


def _llama(entry: Entry) -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    return Built(LlamaForCausalLM(config), _ids(entry, 100), {"use_cache": False})


def _t5(entry: Entry) -> Built:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4)
    return Built(T5EncoderModel(config), _ids(entry, 100), {})


_TRANSFORMERS: dict[str, Callable[[Entry], Built]] = {
    "BertForSequenceClassification": _bert,
    "ViTForImageClassification": _vit,
    "SegformerForSemanticSegmentation": _segformer,
    "ConvNextV2ForImageClassification": _convnextv2,
    "Wav2Vec2ForCTC": _wav2vec2,
    "WhisperEncoder": _whisper,
    "CLIPVisionModelWithProjection": _clip,
    "GPT2LMHeadModel": _gpt2,
    "LlamaForCausalLM": _llama,
    "T5EncoderModel": _t5,
}


def _diffusers(entry: Entry) -> Built:
    return _DIFFUSERS[entry.model](entry)


def _unet(entry: Entry) -> Built:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    latent, _, text = entry.shape.split(", ")
    steps = torch.tensor([3, 700])
    return Built(model, (torch.randn(_sizes(latent)), steps, torch.randn(_sizes(text))), {})


class Decode(nn.Module):
    """The decoder of an AutoencoderKL: `model.decode(latents)` as a module of its own."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (N, 4, H, W) to images (N, 3, 8H, 8W or less)."""
        return self.autoencoder.decode(latents).sample


def _decoder(entry: Entry) -> Built:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    return Built(Decode(model), _image(entry), {})


_DIFFUSERS: dict[str, Callable[[Entry], Built]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL.decode": _decoder,
}

_BUILDERS: dict[str, Callable[[Entry], Built]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "diffusers": _diffusers,
}
