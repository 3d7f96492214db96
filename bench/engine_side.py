"""One side of bench/engine.py in a process of its own: prunes one model once, prints JSON.

    python bench/engine_side.py edgeprune resnet50
    python bench/engine_side.py torch-pruning resnet50

Building the model and importing the library are not timed. torch.export imports more of torch
when it is first called; that is time a user waits for, so it counts, for edgeprune.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ParamSpec, TypeVar

import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlock

P = ParamSpec("P")
R = TypeVar("R")

KEEP_FRACTION = 0.5
IMAGE = (1, 3, 224, 224)
SIDES = ("edgeprune", "torch-pruning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Processor seconds of one removal. `stages`: by stage, in order; they add up to `seconds`.

    capture_seconds: the part of `seconds` that makes the graph and compares it with eager;
    export_seconds: the part of that inside torch.export.export (both 0 for the peer).
    wall_seconds: of the same span. before_mib, peak_mib: the largest resident set before the
    removal and after it. params: dense, and after the removal.
    """

    side: str
    model: str
    seconds: float
    wall_seconds: float
    capture_seconds: float
    export_seconds: float
    stages: dict[str, float]
    before_mib: float
    peak_mib: float
    params: tuple[int, int]


class Clock:
    """Splits a span into stages, and notes what single functions take of it."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self.inside: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """The span starts now."""
        self._wall, self._last = time.perf_counter(), time.process_time()

    @property
    def wall(self) -> float:
        """Wall seconds since the start."""
        return time.perf_counter() - self._wall

    def stage(self, name: str) -> None:
        """What happened since the last call is stage `name`."""
        now = time.process_time()
        self.stages[name] = now - self._last
        self._last = now

    def watched(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, its processor seconds added up in `inside`."""

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - start
                self.inside[name] = self.inside.get(name, 0.0) + spent

        return run


def dense_model(name: str) -> nn.Module:
    """The torchvision model with random weights, in eval mode."""
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None)
    return model.eval()


def peak_mib() -> float:
    """Largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def params(model: nn.Module) -> int:
    """Number of parameter elements."""
    return sum(p.numel() for p in model.parameters())


def edgeprune_side(model: nn.Module, image: torch.Tensor, clock: Clock) -> nn.Module:
    """analyze, score, plan, shrink, with nothing said about the model."""
    import edgeprune.graph.analysis as analysing
    from edgeprune.planning.plan import plan
    from edgeprune.scoring.scores import score
    from edgeprune.surgery.shrink import shrink

    torch.export.export = clock.watched("export", torch.export.export)
    analysing.capture = clock.watched("capture", analysing.capture)
    clock.start()
    analysis = analysing.analyze(model, (image,))
    clock.stage("analyze")
    scores = score(analysis, "l2")
    clock.stage("score")
    chosen = plan(analysis, scores, keep_fraction=KEEP_FRACTION)
    clock.stage("plan")
    pruned: nn.Module = shrink(analysis, chosen)
    clock.stage("shrink")
    return pruned


def peer_side(model: nn.Module, image: torch.Tensor, clock: Clock) -> nn.Module:
    """BasePruner with group L2 and one step: graph, groups, importance, removal.

    With the hints that its own tests give: the classifier is ignored, bare parameters are named
    with their dim, and the width of a transformer is rounded to its number of heads (telling it
    num_heads instead leaves the residual width whole, a third of the work). So both sides remove
    the same number of parameters. It edits the model in place: no copy is made or timed.
    """
    import torch_pruning as tp

    ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    heads = [m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    bare = [(m.layer_scale, 0) for m in model.modules() if isinstance(m, CNBlock)]
    if isinstance(model, torchvision.models.VisionTransformer):
        bare = [(model.class_token, 2), (model.encoder.pos_embedding, 2)]
    clock.start()
    pruner = tp.pruner.BasePruner(
        model,
        image,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1.0 - KEEP_FRACTION,
        ignored_layers=ignored,
        round_to=heads[0] if heads else None,
        unwrapped_parameters=bare or None,
        in_channel_groups={},  # fresh: the defaults are shared between pruners
        out_channel_groups={},
        num_heads={},
    )
    clock.stage("graph")
    pruner.step()
    clock.stage("step")
    if isinstance(model, torchvision.models.VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels  # a hard-coded reshape reads it
    return model


def measure(side: str, name: str) -> Timing:
    """Prune `name` by `side`, in this process; the result must run."""
    torch.set_num_threads(1)
    model, image = dense_model(name), torch.randn(IMAGE)
    dense = params(model)
    if side == "edgeprune":
        import edgeprune.surgery.prune  # noqa: F401  # imports are not timed
    else:
        import torch_pruning  # noqa: F401
    before = peak_mib()
    prune = edgeprune_side if side == "edgeprune" else peer_side
    clock = Clock()
    pruned = prune(model, image, clock)
    wall, peak = clock.wall, peak_mib()
    with torch.no_grad():
        scores = pruned(torch.randn(2, *IMAGE[1:]))
    scores = scores[0] if isinstance(scores, tuple | list) else scores
    if scores.shape != (2, 1000) or params(pruned) > 0.9 * dense:
        raise SystemExit(
            f"{side} on {name}: expected (2, 1000) scores and at most 90 % of {dense} parameters, "
            f"got {tuple(scores.shape)} and {params(pruned)}."
        )
    return Timing(
        side=side,
        model=name,
        seconds=sum(clock.stages.values()),
        wall_seconds=wall,
        capture_seconds=clock.inside.get("capture", 0.0),
        export_seconds=clock.inside.get("export", 0.0),
        stages=clock.stages,
        before_mib=before,
        peak_mib=peak,
        params=(dense, params(pruned)),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1], sys.argv[2]))))
