"""Prune a trained PyTorch model to a device budget, prove it, and judge the ONNX build.

Importing this package imports nothing heavy: each public name is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprune.errors import (
        BudgetNotMet,
        DataError,
        DrawsNumbers,
        EdgepruneError,
        EnvironmentFailed,
        InternalError,
        ModelNotSupported,
        NothingToRemove,
        PlanError,
        ProofFailed,
        RecipeError,
        UsageError,
        UserCodeError,
    )
    from edgeprune.exporting.onnx import export
    from edgeprune.graph.analysis import Analysis, analyze
    from edgeprune.pipeline.load import load
    from edgeprune.planning.plan import Plan, plan
    from edgeprune.recipe.data import Data
    from edgeprune.recipe.onnx_model import from_onnx
    from edgeprune.scoring.scores import Scores, score
    from edgeprune.surgery.prove import Proof, prove
    from edgeprune.surgery.prune import Pruned, prune
    from edgeprune.surgery.repair import repair
    from edgeprune.surgery.repair_report import LayerRepair, Repair
    from edgeprune.surgery.shrink import shrink
    from edgeprune.surgery.user_class import AttributeChange, Returned, to_module

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "AttributeChange",
    "BudgetNotMet",
    "Data",
    "DataError",
    "DrawsNumbers",
    "EdgepruneError",
    "EnvironmentFailed",
    "InternalError",
    "LayerRepair",
    "ModelNotSupported",
    "NothingToRemove",
    "Plan",
    "PlanError",
    "Proof",
    "ProofFailed",
    "Pruned",
    "RecipeError",
    "Repair",
    "Returned",
    "Scores",
    "UsageError",
    "UserCodeError",
    "__version__",
    "analyze",
    "export",
    "from_onnx",
    "load",
    "plan",
    "prove",
    "prune",
    "repair",
    "score",
    "shrink",
    "to_module",
]

_HOMES = {
    "edgeprune.errors": (
        "BudgetNotMet",
        "DataError",
        "DrawsNumbers",
        "EdgepruneError",
        "EnvironmentFailed",
        "InternalError",
        "ModelNotSupported",
        "NothingToRemove",
        "PlanError",
        "ProofFailed",
        "RecipeError",
        "UsageError",
        "UserCodeError",
    ),
    "edgeprune.exporting.onnx": ("export",),
    "edgeprune.graph.analysis": ("Analysis", "analyze"),
    "edgeprune.pipeline.load": ("load",),
    "edgeprune.planning.plan": ("Plan", "plan"),
    "edgeprune.recipe.data": ("Data",),
    "edgeprune.recipe.onnx_model": ("from_onnx",),
    "edgeprune.scoring.scores": ("Scores", "score"),
    "edgeprune.surgery.prove": ("Proof", "prove"),
    "edgeprune.surgery.prune": ("Pruned", "prune"),
    "edgeprune.surgery.repair": ("repair",),
    "edgeprune.surgery.repair_report": ("LayerRepair", "Repair"),
    "edgeprune.surgery.shrink": ("shrink",),
    "edgeprune.surgery.user_class": ("AttributeChange", "Returned", "to_module"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it, once."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
