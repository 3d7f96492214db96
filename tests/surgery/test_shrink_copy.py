"""The shrunk model is a model of its own."""

from __future__ import annotations

import torch
from small_nets import conv, image, net
from torch import nn

from edgeprune.graph.analysis import analyze
from edgeprune.planning.plan import plan
from edgeprune.scoring.scores import score
from edgeprune.surgery.shrink import shrink


def test_no_tensor_is_shared_with_the_dense_model():
    """Cut or whole, tied or not: writing into the shrunk model changes nothing of the dense one."""
    model = net(
        lambda m, x: m.h(m.n(m.b(torch.relu(m.a(x)))).mean((2, 3))),
        a=conv(3, 8),
        b=conv(8, 6),
        n=nn.BatchNorm2d(6),
        h=nn.Linear(6, 4),
    )
    analysis = analyze(model, (image(),))
    dense = analysis.captured.module
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    small = shrink(analysis, plan(analysis, score(analysis)))
    ours = {t.untyped_storage().data_ptr() for t in dense.state_dict().values() if t.dim()}
    theirs = {t.untyped_storage().data_ptr() for t in small.state_dict().values() if t.dim()}
    assert small.a.weight.shape[0] < 8
    assert not ours & theirs
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in dense.named_parameters()
    }
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.add_(1)
    assert all(torch.equal(before[n], t) for n, t in dense.state_dict().items())
