"""The size gate: bytes of the ONNX file and of every file it keeps weights in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgeprune.errors import UsageError
from edgeprune.gates.judging import gate
from edgeprune.gates.verdict import Verdict
from edgeprune.recipe.onnx_file import external_files, read_model

_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeEvidence:
    """Bytes of the build, of the dense model exported the same way, and limits.

    `limit_mib` bounds the build in MiB, `largest_ratio` bounds build / dense. At least one of
    them is given; a ratio needs `dense_bytes`.
    """

    gate: ClassVar[str] = "size"

    pruned_bytes: int
    dense_bytes: int | None = None
    limit_mib: float | None = None
    largest_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.limit_mib is None and self.largest_ratio is None:
            raise UsageError(
                "size cannot be judged at its limits: expected limit_mib or largest_ratio, got "
                "neither. Set one of them.",
                where="size",
            )


@gate("size")
def judge_size(evidence: SizeEvidence) -> tuple[Verdict, ...]:
    """Judge `size` in MiB if it has a limit, and `size_ratio`, build / dense, if it has one.

    Sizes are exact: these verdicts have no interval.
    """
    verdicts = []
    if evidence.limit_mib is not None:
        said = f"{evidence.pruned_bytes} bytes, external data included"
        verdicts.append(
            _verdict("size", evidence.pruned_bytes / _MIB, evidence.limit_mib, "MiB", said)
        )
    if evidence.largest_ratio is not None:
        verdicts.append(_ratio(evidence, evidence.largest_ratio))
    return tuple(verdicts)


def model_bytes(path: Path) -> int:
    """Bytes of an ONNX file plus every external data file that it names, each counted once.

    Raises UsageError if the file is not ONNX or a file that it names is missing.
    """
    model = read_model(path)
    return path.stat().st_size + sum(file.stat().st_size for file in external_files(path, model))


def _ratio(evidence: SizeEvidence, largest_ratio: float) -> Verdict:
    if evidence.dense_bytes is None:
        return Verdict(
            gate="size_ratio",
            outcome="inconclusive",
            observed=None,
            limit=largest_ratio,
            unit="x",
            interval=None,
            count=None,
            why="a ratio needs the dense model's size, got none. Give a baseline.",
        )
    said = f"{evidence.pruned_bytes} of {evidence.dense_bytes} bytes"
    observed = evidence.pruned_bytes / evidence.dense_bytes
    return _verdict("size_ratio", observed, largest_ratio, "x", said)


def _verdict(name: str, observed: float, limit: float, unit: str, why: str) -> Verdict:
    return Verdict(
        gate=name,
        outcome="pass" if observed <= limit else "fail",
        observed=observed,
        limit=limit,
        unit=unit,
        interval=None,
        count=None,
        why=why,
    )
