"""edgeprune, head to head on samples/fashion: accuracy at equal latency, over several seeds.

    pip install -e ".[torch,bench]"
    apt-get install dataset-fashion-mnist        # for `slim` only; or name its folder with --source
    python bench/fashion.py

    edgeprune           the sample's recipe as it is
    no-repair           the same without repair
    no-training         the same without any training
    torch-pruning       Torch-Pruning 1.6.1, group L2, at its default rounding (none)
    torch-pruning-16    the same with widths in multiples of 16
    slim                the dense design with all widths slimmer, trained from scratch on the dense
                        network's 58,000 images for its epochs plus those of recovery

Torch-Pruning starts from the same dense weights and is followed by the same recovery (steps,
epochs, rates, teacher, images, seeds). It and `slim` get the latency that edgeprune reached at the
same seed: of a grid of widths, the one with the most multiply-accumulates that is as fast. All are
exported alike, measured against the same dense file in interleaved pairs of fresh processes, and
judged on the same 10,000 test images. Each result is written as it is ready, and what is in the
file is not done again: stop it and start it as you like. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import own
import peers
from judging import Judge, exported
from ledger import Candidate, Ledger, Result
from rich.console import Console
from rich.table import Table
from torch import nn

from edgeprune.measure.settings import Settings
from edgeprune.recipe.data import load_data
from edgeprune.recipe.schema import Recipe

HERE = Path(__file__).resolve().parent
PEERS = ("torch-pruning", "torch-pruning-16", "slim")
ALL = (*own.VARIANTS, *PEERS)
INSTALLED = Path("/usr/share/datasets/fashion-mnist")

SEARCHING = Settings(
    runs=128, least_runs=11, seconds=0.25, pilot_pairs=4, least_pairs=6, most_pairs=10
)
LEAST = Settings(
    runs=11, least_runs=11, seconds=0.05, warmup=2, pilot_pairs=2, least_pairs=2, most_pairs=2
)
QUICK_EPOCHS = 0.02


class Bench:
    """All that the variants share: recipe, data, judge, ledger and settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick: bool = options.quick
        self.recipe: Recipe = own.recipe(QUICK_EPOCHS if self.quick else 1.0)
        self.source: Path = options.source
        self.work: Path = options.work
        self.work.mkdir(parents=True, exist_ok=True)
        recover, rounds = self.recipe.recover, self.recipe.prune.rounds
        passes = rounds * recover.epochs + recover.final_epochs
        dense_epochs = 0 if self.quick else peers.sample_module("train").EPOCHS
        self.slim_epochs: int = options.slim_epochs or max(1, round(dense_epochs + passes))
        self.ledger = Ledger(
            options.out,
            {
                "quick": self.quick,
                "rounds": rounds,
                "recovery_epochs": passes,
                "slim_epochs": self.slim_epochs,
                "budget": repr(self.recipe.prune.budget),
            },
        )
        self.data = load_data(self.recipe.data.factory, self.recipe.base_dir)
        self.effort = LEAST if self.quick else None
        self.judge = Judge(peers.dense_model(), self.data.test, self.work, self.effort)

    def measure(self, variant: str, seed: int) -> Result:
        """One variant at one seed, from the dense weights to a judged file."""
        if variant in own.VARIANTS:
            return self._own(variant, seed)
        candidate, note = self._width(variant, seed)
        path = self.work / f"{variant}-{seed}.onnx"
        start = time.perf_counter()
        model = self._trained(variant, candidate.amount, seed)
        exported(model, path)
        seconds = time.perf_counter() - start
        said = f"{'width' if variant == 'slim' else 'ratio'} {candidate.amount:.3f}"
        note = f"{said}; {note}" if note else said
        return self.judge.result(variant, seed, model, path, seconds=seconds, note=note)

    def _own(self, variant: str, seed: int) -> Result:
        out = self.work / f"{variant}-{seed}"
        chosen = own.variation(self.recipe, variant, seed)
        model, seconds, note = own.prune(chosen, out, self.effort)
        path = out / "model.onnx"
        return self.judge.result(variant, seed, model, path, seconds=seconds, note=note)

    def _width(self, variant: str, seed: int) -> tuple[Candidate, str]:
        """How far to cut a peer for edgeprune's latency at this seed; the search is done once."""
        reached = self.ledger.find("edgeprune", seed)
        if reached is None or reached.speedup is None:
            raise RuntimeError(f"expected edgeprune's latency at seed {seed} first, got none")
        if variant not in self.ledger.searches:
            print(f"  widths of {variant}:", flush=True)
            build, amounts = self._grid(variant)
            effort = LEAST if self.quick else SEARCHING
            found = peers.search(build, amounts, self.judge, effort, self.work)
            self.ledger.searches[variant] = found
            self.ledger.save()
        return peers.as_fast_as(reached.speedup, self.ledger.searches[variant])

    def _grid(self, variant: str) -> tuple[Callable[[float], nn.Module], list[float]]:
        if variant == "slim":
            return peers.slim_model, [0.25, 0.5] if self.quick else _steps(0.25, 0.95)
        round_to, steps = _rounding(variant), self.recipe.prune.rounds

        def build(ratio: float) -> nn.Module:
            return peers.torch_pruned(ratio, round_to, steps)

        return build, [0.5, 0.7] if self.quick else _steps(0.1, 0.85)

    def _trained(self, variant: str, amount: float, seed: int) -> nn.Module:
        if variant == "slim":
            model = peers.slim_model(amount, seed)
            peers.train_slim(model, self.source, self.slim_epochs, seed, small=self.quick)
            return model
        between = peers.recovered(self.recipe, self.data.train, seed)
        return peers.torch_pruned(amount, _rounding(variant), self.recipe.prune.rounds, between)


def _steps(low: float, high: float) -> list[float]:
    """From low to high in steps of 0.05."""
    return [round(low + 0.05 * k, 2) for k in range(round((high - low) / 0.05) + 1)]


def _rounding(variant: str) -> int | None:
    return 16 if variant.endswith("-16") else None


def table(results: list[Result], dense: Judge) -> Table:
    """One row a variant: means over its seeds, with the range of accuracy, and the worst bounds."""
    shown = Table(
        title=f"samples/fashion, dense: {dense.dense_accuracy:.2%} of the test images, "
        f"{dense.dense_costs.params:,} parameters, {dense.dense_costs.macs:,} MACs"
    )
    for name in ("variant", "seeds", "test accuracy", "points lost", "speedup"):
        shown.add_column(name, justify="left" if name == "variant" else "right")
    for name in ("params", "MACs", "seconds"):
        shown.add_column(name, justify="right")
    shown.add_column("note", overflow="fold")
    for variant in ALL:
        rows = [r for r in results if r.variant == variant]
        done = [r for r in rows if r.failed is None]
        failed = [f"seed {r.seed}: {r.failed}" for r in rows if r.failed is not None]
        if done or failed:
            notes = sorted({r.note for r in done})
            shown.add_row(variant, *_figures(done), "; ".join([*notes, *failed]))
    return shown


def _figures(done: list[Result]) -> list[str]:
    """Seeds, accuracy, drop, speedup, params, MACs, seconds; dashes where nothing was measured."""
    if not done:
        return ["0", *["-"] * 6]

    def values(name: str) -> list[float]:
        return [float(getattr(result, name)) for result in done]

    def mean(name: str) -> float:
        return sum(values(name)) / len(done)

    accuracies, low, high = values("accuracy"), min(values("speedup_low")), values("speedup_high")
    return [
        str(len(done)),
        f"{mean('accuracy'):.2%} ({min(accuracies):.2%} - {max(accuracies):.2%})",
        f"{100 * mean('drop'):.2f}",
        f"{mean('speedup'):.2f} ({low:.2f} - {max(high):.2f})",
        f"{mean('params'):,.0f}",
        f"{mean('macs'):,.0f}",
        f"{mean('seconds'):.0f}",
    ]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown variants are refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (0,1,2)")
    parser.add_argument("--variants", default=",".join(ALL), help="joined by commas (all)")
    parser.add_argument(
        "--quick", action="store_true", help="try the script: next to no training, no real timing"
    )
    parser.add_argument("--out", type=Path, help="JSON file (bench/results/fashion.json)")
    parser.add_argument("--work", type=Path, help="folder of models (build/bench/fashion)")
    parser.add_argument("--source", type=Path, default=INSTALLED, help="folder of the .gz files")
    parser.add_argument("--slim-epochs", type=int, default=0, help="of `slim` (dense + recovery)")
    options = parser.parse_args(arguments)
    name = "fashion-quick" if options.quick else "fashion"
    options.out = options.out or HERE / "results" / f"{name}.json"
    options.work = options.work or HERE.parent / "build" / "bench" / name
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.variants = options.variants.split(",")
    unknown = sorted(set(options.variants) - set(ALL))
    if unknown:
        parser.error(f"--variants: expected of {', '.join(ALL)}, got {', '.join(unknown)}")
    return options


def main(arguments: list[str]) -> int:
    """Measure what is missing, and print the table; 1 if a variant gave no result."""
    options = parse(arguments)
    bench = Bench(options)
    chosen = [v for v in ALL if v in options.variants]  # edgeprune first: it sets the latency
    for seed in options.seeds:
        for variant in chosen:
            held = bench.ledger.find(variant, seed)
            if held is None or held.failed is not None:
                print(f"{variant}, seed {seed}", flush=True)
                bench.ledger.add(attempt(bench, variant, seed))
    rows = [r for r in bench.ledger.results if r.variant in chosen and r.seed in options.seeds]
    Console(width=None if sys.stdout.isatty() else 180).print(table(rows, bench.judge))
    print(f"results in {options.out}")
    return int(any(r.failed for r in rows))


def attempt(bench: Bench, variant: str, seed: int) -> Result:
    """The result; what goes wrong in a peer, or is not installed, is a result too."""
    try:
        return bench.measure(variant, seed)
    except (Exception, SystemExit) as error:
        failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"  no result: {failed}", flush=True)
        return Result(variant=variant, seed=seed, failed=failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
