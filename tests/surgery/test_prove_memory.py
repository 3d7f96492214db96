"""What a proof needs beside the two models: large networks are proved on ordinary machines."""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from torch import nn

from edgeprune.graph.precision import in_float64

# Sixteen layers of a million weights: no single one matters, and they outweigh all else.
CODE = """
import json, resource
import torch
from torch import nn
from edgeprune.graph.analysis import analyze
from edgeprune.planning.plan import plan
from edgeprune.scoring.scores import score
from edgeprune.surgery.prove import prove
from edgeprune.surgery.shrink import shrink

torch.set_num_threads(1)
torch.manual_seed(0)
layers = [layer for _ in range(16) for layer in (nn.Linear(1024, 1024), nn.Tanh())]
analysis = analyze(nn.Sequential(*layers).eval(), (torch.randn(2, 1024),))
decided = plan(analysis, score(analysis), keep_fraction=0.95)
small = shrink(analysis, decided)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
proof = prove(analysis, decided, small)
size = lambda model: 8 * sum(p.numel() for p in model.parameters())
print(json.dumps([proof.outcome, peak() - before, size(analysis.captured.module), size(small)]))
"""


def test_a_proof_holds_each_model_once_more_in_float64():
    """Beside what is there, a proof needs both models in float64, and not one copy beyond."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    outcome, grown, dense, small = json.loads(done.stdout)

    assert outcome == "proved"
    assert small > 0.8 * dense
    assert grown <= 1.2 * (dense + small), (grown, dense, small)


def test_a_copy_in_float64_keeps_ties_flags_and_the_original():
    """Tied stays tied, frozen frozen, integers integers; the original's bytes are its own."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    wide = in_float64(model)

    assert wide[2].weight is wide[0].weight
    assert [p.requires_grad for p in wide.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert wide[1].num_batches_tracked.dtype is torch.int64
    floats = [t for t in wide.state_dict().values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float64}
    with torch.no_grad():
        for tensor in floats:
            tensor.add_(1)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
