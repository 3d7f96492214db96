"""Networks that people use, taken with no hint: pruned by half, proved, exported, compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torchvision
from torch import nn
from zoo_models import lively

import edgeprune

NETWORKS = ("densenet121", "mobilenet_v3_small", "resnet18", "vit_b_16")

# Small images: the same graph, a tenth of the time.
SIZE = 64


def network(name: str) -> nn.Module:
    """A torchvision network for SIZE x SIZE images with lively random weights."""
    options = {"image_size": SIZE} if name.startswith("vit") else {}
    return lively(torchvision.models.get_model(name, weights=None, **options))


@pytest.mark.first
@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_units_goes_with_no_hint(name: str, tmp_path: Path) -> None:
    """At 0.5 at least 60 % of the parameters go, proved, and ONNX Runtime gives torch's output.

    Parity is judged at a batch size that export never saw, relative to the output's spread.
    """
    model = network(name)
    inputs = (torch.randn(2, 3, SIZE, SIZE),)

    pruned = edgeprune.prune(model, inputs, keep_fraction=0.5)

    dense, small = (sum(p.numel() for p in m.parameters()) for m in (model, pruned.model))
    assert small <= 0.4 * dense
    assert pruned.proof.outcome == "proved", pruned.proof.why
    edgeprune.export(pruned, tmp_path / "model.onnx")
    images = torch.randn(3, 3, SIZE, SIZE)
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        want = pruned.model(images).numpy()
    assert want.std() > 0
    assert np.abs(got - want).max() / want.std() <= 1e-4


def test_heads_and_residual_width_of_a_vit_are_units() -> None:
    """vit_b_16 offers its 768 residual channels, 12 heads a block and 3,072 neurons a block."""
    analysis = edgeprune.analyze(network("vit_b_16"), (torch.randn(2, 3, SIZE, SIZE),))

    widths = sorted((group.kind, group.width) for group in analysis.groups)
    assert widths == [("channel", 768), *[("head", 12)] * 12, *[("neuron", 3072)] * 12]
