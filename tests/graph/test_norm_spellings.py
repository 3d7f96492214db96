"""Norms as libraries spell them: the width goes with no hint, twice, and to ONNX.

The oracle of the scale-only norms is the eager model whose maker gives zeros for what went: a
square of 0 adds nothing, so that is silence.
"""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime as ort
import pytest
import timm.layers
import torch
from small_nets import conv, image, net, noise, param, require_equal
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import edgeprune
from edgeprune.pipeline.equality import prove_whole
from edgeprune.surgery.compose import compose
from edgeprune.surgery.prune import prune


class PlusOne(nn.Module):
    """Gemma's: weights around 0, applied before the cast back."""

    def __init__(self, width):
        super().__init__()
        self.weight = param(width)

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * (1.0 + self.weight.float())).type_as(x)


class ByVectorNorm(nn.Module):
    """RMS as a vector norm over the root of the width, which is a written number."""

    def __init__(self, width):
        super().__init__()
        self.scale, self.g = width**0.5, param(width)

    def forward(self, x):
        return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) / self.scale + 1e-6) * self.g


class ByMeans(nn.Module):
    """LayerNorm of channels first, as ConvNeXt, SAM and many segmentation models write it."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = param(width), param(width)

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ByVarMean(nn.Module):
    """The same with var_mean."""

    def __init__(self, width):
        super().__init__()
        self.g = param(width, 1, 1)

    def forward(self, x):
        var, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        return (x - mean) * torch.rsqrt(var + 1e-6) * self.g


SCALES = {
    "Llama": LlamaRMSNorm,
    "T5": T5LayerNorm,
    "Qwen3": Qwen3RMSNorm,
    "Gemma": PlusOne,
    "vector norm": ByVectorNorm,
    "torch": nn.RMSNorm,
    "timm RmsNorm": timm.layers.RmsNorm,
}
IMAGES = {
    "by means": ByMeans,
    "by var_mean": ByVarMean,
    "timm LayerNorm2d": timm.layers.LayerNorm2d,
    "timm RmsNorm2d": timm.layers.RmsNorm2d,
    "timm SimpleNorm2d": timm.layers.SimpleNorm2d,
    "timm GroupNorm1": timm.layers.GroupNorm1,
    "timm GRN": lambda c: GlobalResponseNorm(c, channels_last=False),
    "timm EvoNorm-S0": lambda c: timm.layers.EvoNorm2dS0(c, group_size=2),
    "timm FilterResponseNorm": timm.layers.FilterResponseNormTlu2d,
}


def twice(model, x, tmp_path):
    """Prune, prune again, prove the whole, export the second; gives the first."""
    once = prune(model, (x,), criterion="random")
    again = prune(once.model, (x,), criterion="random", keep_fraction=0.6)
    whole = compose(once.analysis, once.plan, again.plan)
    assert once.proof.outcome == again.proof.outcome == "proved", again.proof.why
    assert prove_whole(once.analysis, whole, again.model, seed=1).outcome == "proved"
    assert once.analysis.unknown == ()

    edgeprune.export(again, tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    fresh = torch.randn((3, *x.shape[1:]), generator=torch.Generator().manual_seed(8))
    (got,) = session.run(None, {session.get_inputs()[0].name: fresh.numpy()})
    with torch.no_grad():
        want = again.model(fresh).numpy()
    assert np.abs(got - want).max() / want.std() <= 1e-4
    return once


@pytest.mark.parametrize("name", SCALES)
def test_a_norm_by_scale_is_exact(name, tmp_path):
    """In any spelling: no redefinition, and the dense model with zeros says the same."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))), a=nn.Linear(8, 12), n=SCALES[name](12), b=nn.Linear(12, 5)
    )
    x = noise(2, 5, 8)
    once = twice(model, x, tmp_path)

    (group,) = once.analysis.groups
    assert (group.width, group.redefines) == (12, ())
    zeroed = copy.deepcopy(model)
    gone = sorted({*range(12)} - {*once.plan.groups[0].keep})
    zeroed.a.weight.data[gone] = 0
    zeroed.a.bias.data[gone] = 0
    require_equal(once.model(x), zeroed(x))


def test_a_norm_by_its_variance(tmp_path):
    """timm's SimpleNorm divides by a deviation: mean and squares by the dense counts."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))),
        a=nn.Linear(8, 12),
        n=timm.layers.SimpleNorm(12),
        b=nn.Linear(12, 5),
    )
    x = noise(2, 5, 8)
    once = twice(model, x, tmp_path)

    kept = list(once.plan.groups[0].keep)
    y = model.a(x)[..., kept]
    variance = (y - y.sum(-1, keepdim=True) / 12).square().sum(-1, keepdim=True) / 11
    y = y * torch.rsqrt(variance + model.n.eps) * model.n.weight[kept]
    require_equal(once.model(x), y @ model.b.weight[:, kept].T + model.b.bias)


@pytest.mark.parametrize("name", IMAGES)
def test_a_norm_of_channels_first(name, tmp_path):
    """Channels of an image go through every spelling that torch.export takes."""
    model = net(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 12), n=IMAGES[name](12), b=conv(12, 4))
    once = twice(model, image(), tmp_path)

    assert [parameter for parameter, _, _ in once.analysis.unit_of("a.weight", 0, 0).slots]
    assert sum(group.width for group in once.analysis.groups) in (6, 12)


def test_global_response_norm_of_channels_last(tmp_path):
    """ConvNeXtV2 in transformers: a norm over space, a mean of it over channels, bare vectors."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x.permute(0, 2, 3, 1)))),
        a=nn.Linear(3, 12),
        n=ConvNextV2GRN(12),
        b=nn.Linear(12, 4),
    )
    once = twice(model, image(), tmp_path)

    assert [group.width for group in once.analysis.groups] == [12]


def test_branches_under_a_softmax_share_their_channels(tmp_path):
    """SKNet: a weight for each of two branches and each channel; the softmax is over branches."""

    def run(m, x):
        y = torch.stack([m.a(x).relu(), m.b(x).relu()], 1)
        s = m.s(m.r(y.sum(1).mean((2, 3), keepdim=True)).relu()).unflatten(1, (2, 8))
        return m.c((y * s.softmax(1)).sum(1))

    model = net(run, a=conv(3, 8), b=conv(3, 8, 5), r=conv(8, 6, 1), s=conv(6, 16, 1), c=conv(8, 4))
    once = twice(model, image(), tmp_path)

    assert ("s.weight", 0, (3, 11)) in once.analysis.unit_of("a.weight", 0, 3).slots


def test_maxout_takes_the_channels_that_compete_together(tmp_path):
    """The larger of two neighbouring channels: both are one unit."""
    model = net(lambda m, x: m.b(m.a(x).unflatten(1, (8, 2)).amax(2)), a=conv(3, 16), b=conv(8, 4))
    once = twice(model, image(), tmp_path)

    assert once.analysis.unit_of("a.weight", 0, 3).slots[0].positions == (2, 3)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_softmax_over_channels_pins_them(name):
    """What is left would share out the whole sum: all or nothing, and the reason says so."""
    model = net(lambda m, x: m.b(getattr(m.a(x), name)(1)), a=conv(3, 8), b=conv(8, 4))
    analysis = edgeprune.analyze(model, (image(),))

    assert analysis.groups == ()
    assert any("softmax" in pin.reason for pin in analysis.pins)


def test_weights_by_a_written_out_norm_are_folded():
    """W / |W| by filter: the effective weight is the parameter, so its inputs can go."""
    model = net(
        lambda m, x: m.b(
            nn.functional.linear(m.a(x).tanh(), nn.functional.normalize(m.w, dim=1)).tanh()
        ),
        a=nn.Linear(8, 6),
        w=param(5, 6),
        b=nn.Linear(5, 4),
    )
    pruned = prune(model, (noise(3, 8),), criterion="random")

    assert [group.width for group in pruned.analysis.groups] == [6, 5]
    assert pruned.proof.outcome == "proved"
