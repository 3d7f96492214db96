"""Network families that people use, analyzed with no hint: half of the units, proved."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from zoo_models import lively

import edgeprune

# Small images: the same graph. vgg's 133 million weights are mostly behind its pooling.
NETWORKS = [
    ("torchvision", "alexnet", 64, {}),
    ("torchvision", "convnext_tiny", 32, {}),
    ("torchvision", "efficientnet_b0", 32, {}),
    ("torchvision", "googlenet", 64, {"init_weights": True, "aux_logits": False}),
    ("torchvision", "mobilenet_v2", 32, {}),
    ("torchvision", "regnet_y_400mf", 32, {}),
    ("torchvision", "resnext50_32x4d", 32, {}),
    ("torchvision", "shufflenet_v2_x0_5", 32, {}),
    ("torchvision", "squeezenet1_1", 32, {}),
    ("torchvision", "swin_t", 64, {}),
    ("torchvision", "vgg11_bn", 48, {}),
    ("timm", "vit_tiny_patch16_224", 64, {"img_size": 64}),
    # Kin that reach further: global response norm, attention over windows of a feature map.
    ("timm", "convnextv2_atto", 32, {}),
    ("timm", "mobilevit_xxs", 64, {}),
]

# What may stay at full width in every network: its input and its output.
ENDS = {"is an output of the model", "its width is that of data, or of a fixed reader"}
# Position tables and masks along tokens or windows, which are not units.
TOKENS = {"meets a value of full size that cannot shrink"}
# Why something else may stay, by network.
JUSTIFIED = {
    "swin_t": TOKENS,
    "vit_tiny_patch16_224": TOKENS,
    "mobilevit_xxs": TOKENS,
    # A channel shuffle ties the two halves of a width that no layer offers by itself.
    "shufflenet_v2_x0_5": {
        "all positions stand or fall together, so the width is all or nothing",
    },
}


@pytest.mark.first
@pytest.mark.parametrize(
    ("zoo", "name", "size", "options"),
    NETWORKS,
    ids=[f"{zoo}-{name}" for zoo, name, *_ in NETWORKS],
)
def test_at_half_of_the_units_half_of_the_parameters_go(zoo, name, size, options):
    """At least 50 % of the parameters go, proved; every operator is known, every pin justified."""
    if zoo == "timm":
        model = timm.create_model(name, pretrained=False, **options)
    else:
        model = torchvision.models.get_model(name, weights=None, **options)
    pruned = edgeprune.prune(lively(model), (torch.randn(2, 3, size, size),), keep_fraction=0.5)
    dense, small = (sum(p.numel() for p in m.parameters()) for m in (model, pruned.model))

    assert small <= 0.5 * dense
    assert pruned.proof.outcome == "proved", pruned.proof.why
    assert pruned.analysis.unknown == ()
    assert {pin.reason for pin in pruned.analysis.pins} <= ENDS | JUSTIFIED.get(name, set())
