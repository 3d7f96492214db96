"""Measuring and its targets import and work where torch does not exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BLOCK = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnxscript"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, NoTorch())
"""


def run(program: str, *arguments: str) -> str:
    """Standard output of a program that cannot import torch."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_with_torch_blocked() -> None:
    """Targets and every module of measure import although torch cannot."""
    program = """
import importlib, pkgutil, edgeprune.measure, edgeprune.measure.runners, edgeprune.targets
for package in (edgeprune.measure, edgeprune.measure.runners):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
        print(module.name)
"""
    assert {"pairs", "worker", "local"} <= set(run(program).split())


def test_the_packages_themselves_import_nothing_heavy() -> None:
    """`import edgeprune.measure` loads no NumPy, SciPy, ONNX, ONNX Runtime or Pydantic."""
    program = """
import edgeprune.measure, edgeprune.measure.runners
print([m for m in ("numpy", "scipy", "onnx", "onnxruntime", "pydantic") if m in sys.modules])
"""
    assert run(program).strip() == "[]"


def test_the_worker_imports_only_what_it_needs() -> None:
    """The fresh process loads ONNX Runtime and NumPy, and neither SciPy, ONNX nor Pydantic."""
    program = """
import edgeprune.measure.worker
print([m for m in ("numpy", "onnxruntime", "scipy", "onnx", "pydantic") if m in sys.modules])
"""
    assert run(program).strip() == "['numpy', 'onnxruntime']"


def test_a_measurement_runs_with_torch_blocked(make_model) -> None:
    """Two models are measured in fresh processes by a program that cannot import torch."""
    program = """
from pathlib import Path
from edgeprune.measure import Settings, measure_pairs, ratio
from edgeprune.targets import load_target
brief = Settings(runs=3, least_runs=1, warmup=1, pilot_pairs=2, least_pairs=2, most_pairs=2)
model = Path(sys.argv[1])
print(ratio(measure_pairs(model, model, load_target("local"), brief)).pairs)
"""
    assert run(program, str(make_model())).strip() == "2"
