"""Fourier transforms: frequencies are mixed, channels pass."""

from __future__ import annotations

import pytest
import torch
from small_nets import between, between_features, conv, image, net, noise, pruned_like_silenced
from torch import fft, nn

from edgeprune.graph.analysis import analyze
from edgeprune.surgery.prune import prune


@pytest.mark.parametrize(
    "op",
    [
        lambda y: fft.irfft2(fft.rfft2(y) * 0.5, s=y.shape[-2:]),
        lambda y: fft.rfft2(y, norm="ortho").abs(),
        lambda y: fft.ifft(fft.fft(y, dim=2), dim=2).real,
        lambda y: fft.fftn(y, dim=(2, 3)).imag,
        lambda y: fft.fftshift(fft.hfft(fft.ihfft(y, dim=3), dim=3), dim=(2, 3)),
    ],
)
def test_channels_pass_through_a_transform_over_space(op):
    """Channel 3 in is channel 3 out, of its spectrum too."""
    pruned = pruned_like_silenced(between(op), image())

    assert ("b.weight", 1, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots


def test_a_transform_over_the_width_pins_it():
    """Every frequency hears every feature; the reason says so."""
    model = between_features(lambda y: fft.fft(fft.fft(y, dim=-1), dim=-2).real)

    analysis = analyze(model, (noise(2, 5, 8),))

    assert analysis.groups == ()
    assert any("Fourier" in pin.reason for pin in analysis.pins)


def test_a_layer_of_a_fourier_neural_operator():
    """Li et al. 2021 (arXiv 2010.08895): low frequencies through complex weights, beside a 1x1."""

    def run(m, x):
        y = m.a(x)
        low = torch.einsum("bik,iok->bok", fft.rfft(y)[..., :3], torch.view_as_complex(m.w))
        spectrum = nn.functional.pad(low, (0, 9 - 3))
        return m.b(torch.tanh(fft.irfft(spectrum, n=16) + m.k(y)))

    model = net(
        run,
        a=nn.Conv1d(3, 8, 1),
        w=nn.Parameter(torch.randn(8, 6, 3, 2)),
        k=nn.Conv1d(8, 6, 1),
        b=nn.Conv1d(6, 4, 1),
    )

    pruned = prune(model, (noise(2, 3, 16),))

    assert pruned.proof.outcome == "proved"
    assert pruned.analysis.unknown == ()
    assert ("w", 0, (3,)) in pruned.analysis.unit_of("a.weight", 0, 3).slots
    assert ("w", 1, (2,)) in pruned.analysis.unit_of("k.weight", 0, 2).slots


def test_a_transform_of_a_merged_axis_is_not_guessed():
    """Channels and rows flattened into the transformed axis: nothing of it goes."""
    model = net(
        lambda m, x: m.b(fft.rfft(m.a(x).flatten(1, 2), dim=1).abs().mean(1)),
        a=conv(3, 8),
        b=nn.Linear(6, 4),
    )

    assert analyze(model, (image(2, size=6),)).groups == ()
