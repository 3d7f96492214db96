"""edgeprune's engine beside Torch-Pruning's: seconds of analysis, plan and shrink, and memory.

    pip install -e ".[torch,bench]" torchvision
    python bench/engine.py                      # bench/results/engine.json, and a table
    python bench/engine.py --nodes bench/results/zoo.json
                        # the walk's time against graph nodes: bench/results/engine-nodes.svg

Each removal runs in a process of its own, on one thread, on a torchvision model with random
weights at 1x3x224x224; half of all units go, by group L2. The two sides take turns, and which is
first alternates. What is counted on each side: see bench/engine_side.py. A ratio is edgeprune's
time over the peer's of the same turn; shown are the geometric mean over turns and its 95 %
t-interval, three times:

    whole        analyze (torch.export and the comparison with eager in it), score, plan, shrink
    no export    the same less what is spent inside torch.export.export
    no capture   the same less all of capture: export, and the runs that compare it with eager

Processor seconds are compared: on one thread they are the wall's on an idle machine, and other
work on a shared one lengthens them less. Wall seconds are kept in the file too. What is in the
file is not measured again. No proof is counted: the peer has none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from engine_nodes import draw, fit, read_rows
from engine_side import SIDES, Timing
from ledger import environment
from rich.console import Console
from rich.table import Table

from edgeprune.measure.intervals import geometric_mean

HERE = Path(__file__).resolve().parent
MODELS = ("resnet50", "vit_b_16", "convnext_base", "densenet201", "mobilenet_v2")
OURS, PEER = SIDES
CONFIDENCE = 0.95
# Median over the models: issue "Any model, no hints", section "Fast".
LIMITS = {"whole": 1.0, "no export": 0.5, "no capture": 0.5}
LONGEST_SECONDS = 1800


def run_side(side: str, model: str) -> Timing:
    """One removal in a fresh process. Raises RuntimeError with the last line it said."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "engine_side.py"), side, model],
        capture_output=True,
        text=True,
        env=os.environ | threads,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"{side} on {model} failed: expected timings, got {said}.")
    return timing(json.loads(done.stdout.strip().splitlines()[-1]))


def timing(row: dict[str, object]) -> Timing:
    """A row of the file."""
    return Timing(**{**row, "params": tuple(row["params"])})


def load(path: Path) -> list[list[Timing]]:
    """Turns measured so far: the two sides of each, edgeprune first."""
    if not path.is_file():
        return []
    held = json.loads(path.read_text(encoding="utf-8"))
    return [[timing(row) for row in turn] for turn in held["turns"]]


def save(path: Path, turns: list[list[Timing]]) -> None:
    """Write the file, whole or not at all."""
    rows = [[asdict(side) for side in turn] for turn in turns]
    document = {"schema": 1, **environment(), "turns": rows, "models": summary(turns)}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def counted(side: Timing, what: str) -> float:
    """Processor seconds of a side that `what` counts (a key of LIMITS)."""
    less = {"whole": 0.0, "no export": side.export_seconds, "no capture": side.capture_seconds}
    return side.seconds - less[what]


def summary(turns: list[list[Timing]]) -> dict[str, dict[str, list[float]]]:
    """Per model and count, the ratio with its interval: [ratio, low, high] (two turns at least)."""
    found = {}
    for model in MODELS:
        mine = [turn for turn in turns if turn[0].model == model]
        if len(mine) > 1:
            found[model] = {
                what: list(
                    geometric_mean(
                        [counted(ours, what) / counted(peer, what) for ours, peer in mine],
                        CONFIDENCE,
                    )
                )
                for what in LIMITS
            }
    return found


def table(turns: list[list[Timing]]) -> Table:
    """One row a model: medians of seconds and memory, ratios with intervals."""
    shown = Table(title="seconds of one thread, edgeprune / Torch-Pruning, 1x3x224x224")
    shown.add_column("model")
    for name in ("turns", "edgeprune s", "peer s", *LIMITS, "peak MiB", "peer MiB"):
        shown.add_column(name, justify="right")
    ratios = summary(turns)
    for model, by_count in ratios.items():
        mine = [turn for turn in turns if turn[0].model == model]
        spent = [statistics.median(counted(t[side], "whole") for t in mine) for side in (0, 1)]
        peaks = [statistics.median(t[side].peak_mib for t in mine) for side in (0, 1)]
        texts = (f"{r:.2f} ({low:.2f} - {high:.2f})" for r, low, high in by_count.values())
        shown.add_row(
            model,
            str(len(mine)),
            *(f"{seconds:.2f}" for seconds in spent),
            *texts,
            *(f"{mib:,.0f}" for mib in peaks),
        )
    shown.add_section()
    medians = [statistics.median(ratios[m][what][0] for m in ratios) for what in LIMITS]
    goals = [f"{m:.2f} (goal {limit})" for m, limit in zip(medians, LIMITS.values(), strict=True)]
    shown.add_row("median", "", "", "", *goals, "", "")
    return shown


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown models are refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns a model, at least 2 (5)")
    parser.add_argument("--models", default=",".join(MODELS), help="joined by commas (all)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "engine.json")
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the file")
    parser.add_argument("--nodes", type=Path, metavar="ZOO", help="the file of bench/zoo.py")
    options = parser.parse_args(arguments)
    options.models = options.models.split(",")
    unknown = sorted(set(options.models) - set(MODELS))
    if unknown or options.repeats < 2:
        parser.error(f"--models: expected of {', '.join(MODELS)}; --repeats: at least 2")
    return options


def plot(source: Path, out: Path) -> int:
    """Draw the zoo's times against nodes; 1 if they grow faster than nodes do."""
    rows = read_rows(source)
    line = fit(rows)
    out.write_text(draw(rows, line), encoding="utf-8")
    print(f"{len(rows)} models: {line.said}; drawn in {out}")
    return int(not line.is_near_linear)


def main(arguments: list[str]) -> int:
    """Measure what is missing, print the table; 1 if a goal is missed."""
    options = parse(arguments)
    if options.nodes is not None:
        return plot(options.nodes, options.out.with_name("engine-nodes.svg"))
    turns = [] if options.fresh else load(options.out)
    for turn in range(options.repeats):
        for model in options.models:
            if sum(held[0].model == model for held in turns) > turn:
                continue
            order = (OURS, PEER) if turn % 2 == 0 else (PEER, OURS)
            sides = {side: run_side(side, model) for side in order}
            turns.append([sides[OURS], sides[PEER]])
            save(options.out, turns)
            ours, peer = turns[-1]
            print(f"{model}, turn {turn + 1}: {ours.seconds:.2f} and {peer.seconds:.2f} s")
    Console(width=None if sys.stdout.isatty() else 180).print(table(turns))
    print(f"results in {options.out}")
    ratios = summary(turns)
    medians = {what: statistics.median(r[what][0] for r in ratios.values()) for what in LIMITS}
    return int(any(medians[what] > limit for what, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
