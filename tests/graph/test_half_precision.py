"""Models in half precision are captured, proved and exported as far as their runtime goes."""

from __future__ import annotations

import pytest
import torch
from small_nets import conv, image, net, noise, randomised
from torch import nn

from edgeprune.errors import ModelNotSupported
from edgeprune.exporting.onnx import export
from edgeprune.graph.capture import capture
from edgeprune.surgery.prune import prune

LOW = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", LOW)
def test_rounding_of_half_precision_is_no_difference(dtype):
    """Eager takes a fused kernel here and the graph does not: float64 decides that both agree."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = randomised(nn.Sequential(nn.Linear(6, 32), layer, nn.Linear(32, 5))).eval().to(dtype)
    pruned = prune(model, (noise(2, 7, 6).to(dtype),), keep_fraction=0.5)

    assert pruned.proof.outcome == "proved"
    assert {p.dtype for p in pruned.model.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", LOW)
def test_what_is_more_than_rounding_is_refused_in_half_precision_too(dtype):
    """A branch that larger inputs leave differs in float64 as well."""

    def run(m, x):
        return m.a(x) if x.abs().max() < 6 else m.a(x).clamp(-1, 1)

    with pytest.raises(ModelNotSupported, match="depends on values: True, as for the example"):
        capture(net(run, a=nn.Linear(4, 3)).to(dtype), (noise(2, 4).to(dtype),))


def test_a_precision_that_the_runtime_does_not_have_is_told(tmp_path):
    """ONNX has no convolution of bfloat16: the refusal says what to export instead."""
    model = net(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 4)).to(torch.bfloat16)
    pruned = prune(model, (image().to(torch.bfloat16),), keep_fraction=0.5)

    with pytest.raises(ModelNotSupported, match=r"weights are bfloat16: export a copy in float32"):
        export(pruned, tmp_path / "m.onnx")
    assert export(pruned.model.float(), tmp_path / "m.onnx", (image(),)).path.exists()


@pytest.mark.parametrize("made_in", ["float32", "its own"])
@pytest.mark.parametrize("dtype", LOW)
def test_a_cache_is_no_memory_for_its_rounding(dtype, made_in):
    """A table put into a buffer makes a second call; it too is decided in float64.

    Made in float32 and cast, it loses width; what is made in half precision keeps what it meets.
    """

    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.a, self.layer, self.b = nn.Linear(6, 32), layer, nn.Linear(32, 5)
            self.register_buffer("shift", None)

        def forward(self, x):
            if self.shift is None:
                made = x.dtype if made_in == "its own" else torch.float32
                self.shift = torch.linspace(0, 1, 32, dtype=made).to(x.dtype)
            return self.b(self.layer(self.a(x) + self.shift))

    pruned = prune(randomised(Cached()).eval().to(dtype), (noise(2, 7, 6).to(dtype),))

    assert pruned.proof.outcome == "proved"
    assert pruned.model.get_parameter("a.weight").shape[0] == (32 if made_in == "its own" else 16)
