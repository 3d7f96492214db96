"""Gates: frozen evidence in, verdicts out. No torch.

Out of scope here: how the evidence was gathered, what the limits should be, how verdicts are
shown. Names are loaded on first use, so that importing this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprune.gates.accuracy import AccuracyEvidence, PairedCounts, paired_counts
    from edgeprune.gates.judging import gate, gate_names, judge
    from edgeprune.gates.latency import LatencyEvidence
    from edgeprune.gates.parity import (
        ParityEvidence,
        ParityRecord,
        compare_outputs,
        parity_evidence,
        read_parity,
        write_parity,
    )
    from edgeprune.gates.prediction import Predictions, predict
    from edgeprune.gates.size import SizeEvidence, model_bytes
    from edgeprune.gates.verdict import Verdict, exit_code

__all__ = [
    "AccuracyEvidence",
    "LatencyEvidence",
    "PairedCounts",
    "ParityEvidence",
    "ParityRecord",
    "Predictions",
    "SizeEvidence",
    "Verdict",
    "compare_outputs",
    "exit_code",
    "gate",
    "gate_names",
    "judge",
    "model_bytes",
    "paired_counts",
    "parity_evidence",
    "predict",
    "read_parity",
    "write_parity",
]

_HOMES = {
    "accuracy": ("AccuracyEvidence", "PairedCounts", "paired_counts"),
    "judging": ("gate", "gate_names", "judge"),
    "latency": ("LatencyEvidence",),
    "parity": (
        "ParityEvidence",
        "ParityRecord",
        "compare_outputs",
        "parity_evidence",
        "read_parity",
        "write_parity",
    ),
    "prediction": ("Predictions", "predict"),
    "size": ("SizeEvidence", "model_bytes"),
    "verdict": ("Verdict", "exit_code"),
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
