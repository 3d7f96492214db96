"""Halve Stable Diffusion's UNet, prove it, export it, run it in ONNX Runtime; time and memory.

    python samples/diffusion/prune_unet.py                  # an eighth of the width, a minute
    python samples/diffusion/prune_unet.py --full           # 860 million parameters

The network is diffusers' UNet2DConditionModel in the configuration of Stable Diffusion 1.x, with
random weights: nothing is downloaded. Exit code 1 where the proof or ONNX Runtime disagrees.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

# Before diffusers is imported: it may not ask the network for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnxruntime
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import edgeprune
from edgeprune import Pruned
from edgeprune.exporting.onnx import Artifact

FULL_PARAMETERS = 859_520_964
AGREEMENT = 1e-4
"""Largest |torch - ONNX Runtime| in standard deviations of torch's output."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Size:
    """A width: what is divided is channels, text width and the count of GroupNorm's groups."""

    divisor: int
    latent: int
    tokens: int

    @property
    def text_width(self) -> int:
        """Width of one token of the prompt."""
        return 768 // self.divisor


FULL = Size(divisor=1, latent=64, tokens=77)
REDUCED = Size(divisor=8, latent=16, tokens=8)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step: its wall time, and the most memory that the process had had by its end."""

    name: str
    seconds: float
    peak_mib: int


class Clock:
    """Runs stages, says so on stderr, and remembers what each took."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def run(self, name: str, work: Callable[[], T]) -> T:
        """Do the work of one stage."""
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        start = time.perf_counter()
        result = work()
        self.stages.append(Stage(name, round(time.perf_counter() - start, 1), peak_mib()))
        done = self.stages[-1]
        print(f"{done.seconds:.1f} s, peak {done.peak_mib:,} MiB", file=sys.stderr, flush=True)
        return result


def peak_mib() -> int:
    """The most memory this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def skeleton(size: Size) -> nn.Module:
    """The UNet of Stable Diffusion 1.x at this size, without values (on the meta device).

    8 heads and the whole structure always; a group of GroupNorm has as many channels at every
    size (10 to 80), so that what hangs together across the skip connections is the same.
    """
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=size.latent,
            block_out_channels=tuple(width // size.divisor for width in (320, 640, 1280, 1280)),
            cross_attention_dim=size.text_width,
            attention_head_dim=8,  # of 1.x: the count of heads, in spite of its name
            layers_per_block=2,
            norm_num_groups=32 // size.divisor,
        )


def build(size: Size, seed: int) -> nn.Module:
    """The UNet in eval mode: random matrices of unit gain, vectors of which no two are alike."""
    model = skeleton(size)
    if list(model.buffers()):
        raise RuntimeError("building the UNet: expected no buffers, got some without values")
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.dim() > 1:
                parameter.div_(parameter[0].numel() ** 0.5)
            else:
                parameter.mul_(0.2).add_(1.0 if name.endswith("weight") else 0.0)
    return model


def example(size: Size, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (batch, 4, H, W), time steps (batch,), text (batch, tokens, width)."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 4, size.latent, size.latent, generator=generator),
        torch.randint(0, 1000, (batch,), generator=generator),
        torch.randn(batch, size.tokens, size.text_width, generator=generator),
    )


def prune(model: nn.Module, inputs: tuple[Tensor, ...], keep: float, clock: Clock) -> Pruned:
    """`edgeprune.prune`, stage by stage."""
    analysis = clock.run("analyze", lambda: edgeprune.analyze(model, inputs))
    scores = clock.run("score", lambda: edgeprune.score(analysis))
    plan = clock.run("plan", lambda: edgeprune.plan(analysis, scores, keep_fraction=keep))
    small = clock.run("shrink", lambda: edgeprune.shrink(analysis, plan))
    proof = clock.run("prove", lambda: edgeprune.prove(analysis, plan, small).require())
    return Pruned(model=small, plan=plan, analysis=analysis, proof=proof)


def difference(pruned: Pruned, artifact: Artifact, inputs: tuple[Tensor, ...]) -> float:
    """max |torch - ONNX Runtime| / standard deviation of torch's output, on other inputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(artifact.path), options, providers=["CPUExecutionProvider"]
    )
    names = [node.name for node in session.get_inputs()]
    feeds = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
    (got,) = session.run(None, feeds)
    with torch.no_grad():
        want = pruned.model(*inputs).sample.numpy()
    return float(np.abs(got - want).max() / want.std())


def parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True, slots=True)
class Report:
    """What was done, to what, and what it took; `json` prints exactly this."""

    latent: int
    dense_parameters: int
    pruned_parameters: int
    removed_fraction: float
    groups: int
    pins: int
    proof: str
    proof_error: float
    change: float
    sabotages: int
    onnx_difference: float
    files: dict[str, int]
    stages: tuple[Stage, ...]
    seconds: float
    peak_mib: int

    @property
    def holds(self) -> bool:
        """Whether the proof is whole and ONNX Runtime computes what torch computes."""
        return self.proof == "proved" and self.onnx_difference <= AGREEMENT


def carry_out(size: Size, folder: Path, options: argparse.Namespace) -> Report:
    """All stages, at one size."""
    clock = Clock()
    model = clock.run("build", lambda: build(size, options.seed))
    dense = parameters(model)
    if size.divisor == 1 and dense != FULL_PARAMETERS:
        raise RuntimeError(f"building the UNet: expected {FULL_PARAMETERS} parameters, got {dense}")
    pruned = prune(model, example(size, 2, options.seed), options.keep, clock)
    artifact = clock.run(
        "export",
        lambda: edgeprune.export(pruned, folder / "unet.onnx", external_data=True),
    )
    others = example(size, 1, options.seed + 1)
    error = clock.run("ONNX Runtime", lambda: difference(pruned, artifact, others))
    small = parameters(pruned.model)
    files = [path for path in (artifact.path, artifact.data_path) if path is not None]
    return Report(
        latent=size.latent,
        dense_parameters=dense,
        pruned_parameters=small,
        removed_fraction=round(1 - small / dense, 4),
        groups=len(pruned.analysis.groups),
        pins=len(pruned.analysis.pins),
        proof=pruned.proof.outcome,
        proof_error=pruned.proof.error,
        change=pruned.proof.change,
        sabotages=len(pruned.proof.sabotages),
        onnx_difference=error,
        files={path.name: path.stat().st_size for path in files},
        stages=tuple(clock.stages),
        seconds=round(sum(stage.seconds for stage in clock.stages), 1),
        peak_mib=peak_mib(),
    )


def table(report: Report) -> str:
    """The report for a person."""
    files = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in report.files.items())
    rows = [f"{s.name:16}{s.seconds:>9.1f} s{s.peak_mib:>9,} MiB" for s in report.stages]
    return "\n".join(
        [
            f"parameters   {report.dense_parameters:,} -> {report.pruned_parameters:,}, "
            f"{report.removed_fraction:.1%} removed",
            f"proof        {report.proof}, error {report.proof_error:.1e}, {report.sabotages} "
            f"sabotaged comparisons; the removal changes the output by {report.change:.2f}",
            f"ONNX Runtime differs from torch by {report.onnx_difference:.1e}",
            f"files        {files}",
            "",
            f"{'stage':16}{'time':>11}{'peak so far':>13}",
            *rows,
            f"{'all':16}{report.seconds:>9.1f} s{report.peak_mib:>9,} MiB",
        ]
    )


def main() -> int:
    """Parse, run, print; 1 where something does not hold."""
    parser = argparse.ArgumentParser(description="Prune Stable Diffusion's UNet by half.")
    parser.add_argument("--full", action="store_true", help="the real width, 64x64 latents")
    parser.add_argument("--divisor", type=int, choices=(1, 2, 4, 8), help="width: 1/divisor")
    parser.add_argument("--latent", type=int, help="latents of N x N, a multiple of 8")
    parser.add_argument("--keep", type=float, default=0.5, help="share of units kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for unet.onnx; else it is not kept")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    given = FULL if options.full else REDUCED
    size = Size(options.divisor or given.divisor, options.latent or given.latent, given.tokens)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = carry_out(size, options.out or Path(folder), options)
    print(json.dumps(asdict(report), indent=2) if options.json else table(report))
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
