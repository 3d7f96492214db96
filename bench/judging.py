"""One judge for every variant: the same export, the same test images, the same paired timing."""

from __future__ import annotations

from pathlib import Path

import torch
from ledger import Result
from torch import nn

from edgeprune.exporting.onnx import Artifact, export
from edgeprune.gates.accuracy import paired_counts, paired_interval
from edgeprune.gates.prediction import predict
from edgeprune.graph.capture import capture
from edgeprune.measure.intervals import ratio
from edgeprune.measure.pairs import measure_pairs
from edgeprune.measure.settings import Settings
from edgeprune.planning.cost import Cost, cost
from edgeprune.recipe.data import Split
from edgeprune.targets import load_target

EXAMPLE = (2, 1, 28, 28)


def exported(model: nn.Module, path: Path) -> Artifact:
    """The model as edgeprune exports it, with a dynamic batch."""
    return export(model, path, (torch.zeros(EXAMPLE),))


def costs(model: nn.Module) -> Cost:
    """Parameters and multiply-accumulates of one image, counted as edgeprune counts them."""
    return cost(capture(model, (torch.zeros(EXAMPLE),)))


class Judge:
    """Holds variants against the dense file: on the test split, and on the local CPU."""

    def __init__(
        self, dense: nn.Module, test: Split, folder: Path, effort: Settings | None
    ) -> None:
        """effort: of the final measurements; None for the target's own preset."""
        self._dense = exported(dense, folder / "dense.onnx").path
        self._test = test
        self._effort = effort
        outputs = predict(self._dense, test)
        self._outputs, self._targets = outputs.outputs, outputs.targets
        counts = paired_counts(self._outputs, self._outputs, self._targets)
        self.dense_accuracy = counts.both / counts.samples
        self.dense_costs = costs(dense)

    def speedup(self, path: Path, effort: Settings) -> float:
        """Latency of the dense file over that of `path`, with some effort."""
        return ratio(measure_pairs(self._dense, path, load_target("local"), effort)).ratio

    def result(
        self, variant: str, seed: int, model: nn.Module, path: Path, *, seconds: float, note: str
    ) -> Result:
        """Test accuracy and latency of the file `path`, which holds `model`."""
        outputs = predict(path, self._test).outputs
        counts = paired_counts(self._outputs, outputs, self._targets)
        faster = ratio(measure_pairs(self._dense, path, load_target("local"), self._effort))
        figures = costs(model)
        return Result(
            variant=variant,
            seed=seed,
            accuracy=(counts.both + counts.pruned_only) / counts.samples,
            drop=counts.drop,
            drop_interval=paired_interval(counts, 0.95),
            speedup=faster.ratio,
            speedup_low=faster.low,
            speedup_high=faster.high,
            pairs=faster.pairs,
            params=figures.params,
            macs=figures.macs,
            size_bytes=path.stat().st_size,
            seconds=seconds,
            note=note,
        )
