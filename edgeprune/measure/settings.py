"""How much to measure. Presets named after MLPerf Mobile's; standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from edgeprune.targets import Target


def _require(holds: bool, name: str, expected: str, got: float) -> None:
    if not holds:
        raise UsageError(
            f"measurement settings are not valid at {name}: expected {expected}, got {got}. "
            f"Change {name}.",
            where=name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Effort of a paired measurement.

    `runs` timed inferences a process, after `warmup` untimed ones, ended early after `seconds`
    once `least_runs` are done. `pilot_pairs` pairs give the spread, from which the number of
    pairs follows that makes the interval of the log ratio `+-half_width` wide (0.05 is about
    5 %), between `least_pairs` and `most_pairs`. `confidence` is that of every interval.
    """

    runs: int = 400
    least_runs: int = 64
    seconds: float = 1.0
    warmup: int = 20
    pilot_pairs: int = 8
    least_pairs: int = 10
    most_pairs: int = 60
    half_width: float = 0.05
    confidence: float = 0.95
    seed: int = 0
    timeout_seconds: float = 300.0

    def __post_init__(self) -> None:
        _require(self.runs >= 1, "runs", "at least 1", self.runs)
        _require(1 <= self.least_runs <= self.runs, "least_runs", "1 to runs", self.least_runs)
        _require(self.seconds > 0, "seconds", "more than 0", self.seconds)
        _require(self.warmup >= 1, "warmup", "at least 1", self.warmup)
        _require(self.pilot_pairs >= 2, "pilot_pairs", "at least 2", self.pilot_pairs)
        _require(
            self.pilot_pairs <= self.least_pairs <= self.most_pairs,
            "least_pairs",
            f"{self.pilot_pairs} (pilot_pairs) to {self.most_pairs} (most_pairs)",
            self.least_pairs,
        )
        _require(self.half_width > 0, "half_width", "more than 0", self.half_width)
        _require(0.5 <= self.confidence < 1, "confidence", "0.5 to below 1", self.confidence)
        _require(self.timeout_seconds > 0, "timeout_seconds", "more than 0", self.timeout_seconds)


# On a 1 ms model a process takes about .4 s to start and .4 s to time 400 runs. Each process
# of `normal` and `quick` holds the 64 runs that a p90 needs; a p99 needs `runs=662`.
_PRESETS = {
    "normal": Settings(),
    "quick": Settings(
        runs=128, seconds=0.5, pilot_pairs=6, least_pairs=8, most_pairs=16, half_width=0.08
    ),
    "rapid": Settings(
        runs=64,
        least_runs=11,
        seconds=0.25,
        warmup=10,
        pilot_pairs=4,
        least_pairs=5,
        most_pairs=10,
        half_width=0.15,
    ),
}


def settings_for(target: Target) -> Settings:
    """The settings of the target's preset; change single ones with `dataclasses.replace`."""
    return _PRESETS[target.measure.preset]
