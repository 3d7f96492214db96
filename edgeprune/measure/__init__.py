"""Timing on ONNX Runtime: fresh processes, interleaved pairs, intervals. No torch.

Out of scope here: what a model is, where it came from, which limit it must meet (`gates`).
Names are loaded on first use, so that importing this package, as every worker process does,
loads neither NumPy nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprune.measure.intervals import (
        latency_ms,
        pairs_needed,
        percentile_ms,
        ratio,
        runs_needed,
    )
    from edgeprune.measure.machine import MachineState, machine_state
    from edgeprune.measure.pairs import measure_pairs
    from edgeprune.measure.registry import Registry
    from edgeprune.measure.samples import Job, Latency, PairedSamples, Ratio, Samples
    from edgeprune.measure.scripted import ScriptedRunner
    from edgeprune.measure.settings import Settings, settings_for
    from edgeprune.measure.transport import Runner, find_runner, runner, runner_names

__all__ = [
    "Job",
    "Latency",
    "MachineState",
    "PairedSamples",
    "Ratio",
    "Registry",
    "Runner",
    "Samples",
    "ScriptedRunner",
    "Settings",
    "find_runner",
    "latency_ms",
    "machine_state",
    "measure_pairs",
    "pairs_needed",
    "percentile_ms",
    "ratio",
    "runner",
    "runner_names",
    "runs_needed",
    "settings_for",
]

_HOMES = {
    "intervals": ("latency_ms", "pairs_needed", "percentile_ms", "ratio", "runs_needed"),
    "machine": ("MachineState", "machine_state"),
    "pairs": ("measure_pairs",),
    "registry": ("Registry",),
    "samples": ("Job", "Latency", "PairedSamples", "Ratio", "Samples"),
    "scripted": ("ScriptedRunner",),
    "settings": ("Settings", "settings_for"),
    "transport": ("Runner", "find_runner", "runner", "runner_names"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it, once."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
