"""What edgeprune is held against: Torch-Pruning, and slim networks trained from scratch.

Both are given the latency that edgeprune reached: of all widths on a grid, the one with the most
multiply-accumulates that is as fast.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from judging import EXAMPLE, Judge, costs, exported
from ledger import Candidate
from safetensors.torch import load_file
from torch import nn

from edgeprune.measure.settings import Settings
from edgeprune.recipe.data import Split
from edgeprune.recipe.schema import Recipe
from edgeprune.recover.finetune import Settings as Training
from edgeprune.recover.finetune import finetune

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "fashion"
# A width as fast as this share of the speed that is asked for counts as equally fast.
SPEED_TOLERANCE = 0.98


def sample_module(name: str) -> object:
    """A fresh copy of one of the sample's scripts, under a name of its own."""
    if str(SAMPLE) not in sys.path:
        sys.path.insert(0, str(SAMPLE))  # the scripts import one another
    spec = importlib.util.spec_from_file_location(f"fashion_{name}", SAMPLE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"loading {SAMPLE / name}.py failed: expected a script, got none.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dense_model() -> nn.Module:
    """The sample's network with its committed weights, in eval mode."""
    model: nn.Module = sample_module("model").build()
    model.load_state_dict(load_file(SAMPLE / "dense.safetensors"))
    return model.eval()


def slim_model(multiplier: float, seed: int = 0) -> nn.Module:
    """The sample's network, untrained, with every width times `multiplier`, in multiples of 8."""

    def width(full: int) -> int:
        return max(8, 8 * round(multiplier * full / 8))

    module = sample_module("model")
    module.STEM_WIDTH = width(module.STEM_WIDTH)
    module.HEAD_WIDTH = width(module.HEAD_WIDTH)
    module.BLOCKS = tuple((width(outputs), stride) for outputs, stride in module.BLOCKS)
    torch.manual_seed(seed)
    model: nn.Module = module.build()
    return model.eval()


def torch_pruned(
    ratio: float,
    round_to: int | None,
    steps: int,
    between: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Torch-Pruning's group L2 pruning of the dense network, `ratio` of each layer's channels.

    In `steps` equal steps, with `between(model, step)` after each, steps from 1; the classifier,
    whose outputs are the classes, is ignored as its manual says. Fresh dicts, because the
    defaults are shared between pruners.
    """
    import torch_pruning as tp

    model = copy.deepcopy(dense_model())
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(EXAMPLE),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        iterative_steps=steps,
        round_to=round_to,
        ignored_layers=[model.classifier],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    for step in range(1, steps + 1):
        pruner.step()
        require_running(model)
        if between is not None:
            between(model, step)
    return model.eval()


def require_running(model: nn.Module) -> None:
    """Raise RuntimeError unless the model gives finite class scores at two batch sizes."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in (2, 5):
            scores = model(torch.randn(batch, *EXAMPLE[1:]))
            if scores.shape != (batch, 10) or not bool(torch.isfinite(scores).all()):
                raise RuntimeError(
                    f"expected finite scores {(batch, 10)}, got {tuple(scores.shape)}"
                )
    model.train(was_training)


def recovered(recipe: Recipe, train: Split, seed: int) -> Callable[[nn.Module, int], None]:
    """What edgeprune's recipe does after a round, as a function of model and round number.

    The same epochs, rates, teacher and seeds; after the last round also the final epochs.
    """
    teacher = dense_model()
    recover, rounds = recipe.recover, recipe.prune.rounds

    def settings(epochs: float, number: int) -> Training:
        return Training(
            epochs=epochs,
            learning_rate=recover.learning_rate,
            weight_decay=recover.weight_decay,
            distillation=recover.distillation,
            temperature=recover.temperature,
            seed=seed + number,
        )

    def train_(model: nn.Module, number: int) -> None:
        finetune(model, teacher, train, settings(recover.epochs, number))
        if number == rounds and recover.final_epochs > 0:
            finetune(model, teacher, train, settings(recover.final_epochs, rounds + 1))

    return train_


def search(
    build: Callable[[float], nn.Module],
    amounts: list[float],
    judge: Judge,
    effort: Settings,
    folder: Path,
) -> list[Candidate]:
    """Speed and cost of the untrained model at each amount; equal shapes are measured once."""
    found: dict[tuple[tuple[int, ...], ...], Candidate] = {}
    for amount in amounts:
        model = build(amount)
        shape = tuple(tuple(p.shape) for p in model.parameters())
        if shape not in found:
            path = exported(model, folder / "candidate.onnx").path
            speedup = judge.speedup(path, effort)
            found[shape] = Candidate(amount=amount, macs=costs(model).macs, speedup=speedup)
            print(f"    {amount:.3f}: {found[shape].macs} MACs, {speedup:.2f} x", flush=True)
    return list(found.values())


def as_fast_as(wanted: float, candidates: list[Candidate]) -> tuple[Candidate, str]:
    """The candidate with the most MACs that is `wanted` times faster than dense, and a note."""
    fast = [c for c in candidates if c.speedup >= SPEED_TOLERANCE * wanted]
    if fast:
        return max(fast, key=lambda c: c.macs), ""
    return max(candidates, key=lambda c: c.speedup), f"nothing on the grid is {wanted:.2f} x"


def train_slim(model: nn.Module, source: Path, epochs: int, seed: int, *, small: bool) -> None:
    """Train from scratch as the dense network was; `small`: on the 10,000 committed images."""
    script, maker, data = map(sample_module, ("train", "make_data", "data"))
    if small:
        images, labels = data.read("train")
    else:
        images, labels = maker.read_official(source, "train")
        _, held_out = maker.divide(labels)
        seen = np.setdiff1d(np.arange(len(labels)), held_out)
        images, labels = images[seen], labels[seen]
    model.to(memory_format=torch.channels_last)
    torch.manual_seed(seed)
    split = data.Augmented(images, labels, batch_size=script.BATCH)
    script.train(model, split, data.InOrder(*data.read("validation")), epochs)
    model.eval()
