"""Complex numbers that a model moves about reach ONNX, where torch's exporter moves real ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgeprune
from edgeprune.errors import ModelNotSupported

# Spectra z (batch, 8, 5) of signals of 9 positions; each keeps batch and channels in front.
MOVED = {
    "zeros around": lambda z: F.pad(z, (1, 2)),
    "an axis more, counted from the end": lambda z: (z.unsqueeze(-1) * torch.ones(2)).sum(-1),
    "an axis more": lambda z: (z.unsqueeze(1) * torch.ones(2, 1, 1)).sum(1),
    "one frequency": lambda z: z.select(-1, 2).unsqueeze(-1) + z,
    "repeated": lambda z: z.unsqueeze(2).expand(-1, -1, 3, -1).sum(2),
    "another shape": lambda z: z.reshape(z.shape[0], 8, 5, 1).squeeze(-1),
    "another order": lambda z: z.index_select(-1, torch.tensor([2, 1, 0, 3])),
}


class Spectral(nn.Module):
    """Two layers, and a spectrum over positions between them."""

    def __init__(self, move):
        super().__init__()
        self.a, self.b, self.move = nn.Conv1d(3, 8, 1), nn.Linear(8, 4), move

    def forward(self, x):
        return self.b(self.move(torch.fft.rfft(self.a(x), dim=2)).abs().mean(2))


@pytest.mark.parametrize("way", MOVED)
def test_spectra_that_move_reach_onnx(way, tmp_path):
    """export() compares the file with torch on varied inputs, at other batch sizes too."""
    model = Spectral(MOVED[way]).eval()
    pruned = edgeprune.prune(model, (torch.randn(2, 3, 9),), keep_fraction=0.5)
    artifact = edgeprune.export(pruned, tmp_path / "m.onnx")

    assert pruned.proof.outcome == "proved"
    assert artifact.outputs[0].shape == ("batch", 4)


def test_a_spectrum_padded_by_other_than_zeros_is_refused(tmp_path):
    """What has no form is told with its node, as before."""
    model = Spectral(lambda z: F.pad(z, (1, 1), value=2.0)).eval()
    with pytest.raises(ModelNotSupported, match=r"expected an ONNX form of torch\.ops\.aten\.pad"):
        edgeprune.export(model, tmp_path / "m.onnx", (torch.randn(2, 3, 9),))
