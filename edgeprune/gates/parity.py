"""The parity gate: ONNX Runtime computes what the framework computed.

Per output: error = max |runtime - reference| / standard deviation of the reference. An output
that does not depend on the input shows nothing (0 = 0 holds for any untrained head), so a
constant one can never pass: it is inconclusive, and a failure if it differs as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgeprune.errors import DataError
from edgeprune.gates.judging import gate
from edgeprune.gates.prediction import run_once
from edgeprune.gates.verdict import Outcome, Verdict
from edgeprune.measure.session import open_session
from edgeprune.recipe.data import Array

PARITY_LIMIT = 1e-4
# A float16 has 10 bits after the point: one rounding is 5e-4 of a value, and a sum has many.
HALF_PARITY_LIMIT = 1e-2

# A float32 has about 7 digits: a spread below this share of the size is its rounding noise.
_CONSTANT_SHARE = 1e-6

# Kinds of NumPy dtypes: float, signed, unsigned, boolean. A complex one would lose its half.
_REAL = "fiub"

_INPUT, _OUTPUT = "input.", "output."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParityRecord:
    """One batch: arrays by input name, and the framework's outputs by output name."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """One output compared. `error` is in standard deviations of the reference, if it has any.

    `finding` is `compared`; `wrong` (shape, NaN, a missing output); or `vacuous` (nothing shown).
    """

    name: str
    finding: Literal["compared", "wrong", "vacuous"]
    error: float | None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityEvidence:
    """Every output compared on `samples` samples, and the largest error allowed."""

    gate: ClassVar[str] = "parity"

    outputs: tuple[OutputParity, ...]
    samples: int
    limit: float = PARITY_LIMIT


@gate("parity")
def judge_parity(evidence: ParityEvidence) -> tuple[Verdict, ...]:
    """One verdict `parity` (std): the worst output decides."""
    errors = [output.error for output in evidence.outputs if output.error is not None]
    problems = [
        f"output '{output.name}' {output.problem}"
        for output in evidence.outputs
        if output.problem is not None
    ]
    findings = {output.finding for output in evidence.outputs}
    outcome: Outcome = "pass"
    if "wrong" in findings or any(error > evidence.limit for error in errors):
        outcome = "fail"
    elif "vacuous" in findings or not errors:
        outcome = "inconclusive"
        problems = problems or ["there is no output to compare. Record the framework's outputs"]
    worst = max(errors, default=None)
    count = "1 output" if len(errors) == 1 else f"{len(errors)} outputs"
    said = f"max difference / standard deviation over {count}"
    return (
        Verdict(
            gate="parity",
            outcome=outcome,
            observed=worst,
            limit=evidence.limit,
            unit="std",
            interval=None,
            count=evidence.samples,
            why="; ".join(problems) or said,
        ),
    )


def parity_evidence(
    model: Path, record: ParityRecord, *, threads: int = 1, limit: float | None = None
) -> ParityEvidence:
    """Run an ONNX file on a record's inputs and compare with the record's outputs.

    limit: in standard deviations; None: what the outputs' precision allows, `default_limit`.
    Raises UsageError if ONNX Runtime refuses the file and DataError if it refuses the inputs.
    """
    session = open_session(model, threads=threads)
    actual = run_once(session, record.inputs, where=str(model))
    samples = next((len(array) for array in record.inputs.values() if array.ndim), 0)
    return ParityEvidence(
        outputs=compare_outputs(record.outputs, actual),
        samples=samples,
        limit=default_limit(record.outputs) if limit is None else limit,
    )


def default_limit(outputs: Mapping[str, Array]) -> float:
    """Largest error that rounding explains: 1e-4 std, or 1e-2 if an output is float16."""
    half = any(array.dtype == np.float16 for array in outputs.values())
    return HALF_PARITY_LIMIT if half else PARITY_LIMIT


def compare_outputs(
    reference: Mapping[str, Array], actual: Mapping[str, Array]
) -> tuple[OutputParity, ...]:
    """Compare outputs by name; batch first, any numeric dtype, judged in float64."""
    unrecorded = tuple(
        OutputParity(name=name, finding="vacuous", error=None, problem="has no recorded reference")
        for name in actual
        if name not in reference
    )
    compared = tuple(_compare(name, array, actual.get(name)) for name, array in reference.items())
    return compared + unrecorded


def _compare(name: str, reference: Array, actual: Array | None) -> OutputParity:
    problem = _wrong(reference, actual)
    if problem is not None or actual is None:
        return OutputParity(name=name, finding="wrong", error=None, problem=problem)
    wanted, got = reference.astype(np.float64), actual.astype(np.float64)
    difference = float(np.max(np.abs(wanted - got)))
    if not _is_constant(wanted):
        return OutputParity(name=name, finding="compared", error=difference / float(wanted.std()))
    if difference > PARITY_LIMIT * max(1.0, float(np.max(np.abs(wanted)))):
        problem = f"is constant in the reference and differs from it by {difference:.3g}"
        return OutputParity(name=name, finding="wrong", error=None, problem=problem)
    problem = "is constant, which shows nothing. Record inputs and weights that make it vary"
    return OutputParity(name=name, finding="vacuous", error=None, problem=problem)


def _wrong(reference: Array, actual: Array | None) -> str | None:
    """What makes an output wrong before any number is compared."""
    if actual is None:
        return "is missing from the model"
    if reference.shape != actual.shape:
        return f"has shape {actual.shape}, expected {reference.shape}"
    if reference.size == 0:
        return "is empty"
    for array, where in ((reference, "in the reference"), (actual, "in ONNX Runtime")):
        if array.dtype.kind not in _REAL:
            return f"is {array.dtype} {where}, expected real numbers"
    if not np.all(np.isfinite(reference)):
        return "is NaN or infinite in the reference"
    if not np.all(np.isfinite(actual)):
        return "is NaN or infinite in ONNX Runtime"
    return None


def _is_constant(values: npt.NDArray[np.float64]) -> bool:
    """The same everywhere, or the same for every sample, up to float32 rounding."""
    tiny = _CONSTANT_SHARE * float(np.max(np.abs(values)))
    across_samples = values - values[:1] if values.ndim and len(values) > 1 else None
    if across_samples is not None and float(np.max(np.abs(across_samples))) <= tiny:
        return True
    return float(values.std()) <= tiny


def write_parity(path: Path, record: ParityRecord) -> None:
    """Store a record as a compressed `.npz` with keys `input.NAME` and `output.NAME`."""
    arrays = {_INPUT + name: array for name, array in record.inputs.items()}
    arrays |= {_OUTPUT + name: array for name, array in record.outputs.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_parity(path: Path) -> ParityRecord:
    """Read a record that `write_parity` stored. Raises DataError for any other."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # a damaged zip raises zipfile's, zlib's or NumPy's errors
        raise DataError(
            f"reading parity data at {path}: expected an .npz file, got {type(error).__name__}: "
            f"{error}. Build the bundle again.",
            where=str(path),
        ) from error
    for name, array in arrays.items():
        if array.dtype.kind not in _REAL:
            raise DataError(
                f"reading parity data at {path}: expected real numbers in '{name}', got dtype "
                f"{array.dtype}. Record it as integers or floats.",
                where=name,
            )
    inputs = {n.removeprefix(_INPUT): a for n, a in arrays.items() if n.startswith(_INPUT)}
    outputs = {n.removeprefix(_OUTPUT): a for n, a in arrays.items() if n.startswith(_OUTPUT)}
    if not inputs or not outputs:
        raise DataError(
            f"reading parity data at {path}: expected keys 'input.NAME' and 'output.NAME', got "
            f"{sorted(arrays)}. Write it with write_parity.",
            where=str(path),
        )
    return ParityRecord(inputs=inputs, outputs=outputs)
