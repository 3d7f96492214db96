"""What `edgeprune prune --out` leaves behind: the pruned model, its plan, ONNX, and the evidence.

The folder is a bundle like that of a run, with one gate, parity: nothing was trained, so accuracy
and latency are not judged, and its report says so.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch

import edgeprune
from edgeprune.exporting.agreement import feeds, torch_outputs
from edgeprune.exporting.onnx import Artifact, export
from edgeprune.gates.judging import judge
from edgeprune.gates.parity import ParityRecord, parity_evidence, write_parity
from edgeprune.graph.capture import capture
from edgeprune.graph.inputs import resize_batch, vary
from edgeprune.measure.session import open_session
from edgeprune.pipeline.load import save
from edgeprune.pipeline.round import proof_row
from edgeprune.planning.cost import cost
from edgeprune.release.bundle import Bundle, check_destination, seal, staging_folder
from edgeprune.release.manifest import Provenance
from edgeprune.release.report import (
    Figures,
    GroupWidth,
    PinRow,
    Report,
    Round,
    VerdictRow,
)
from edgeprune.surgery.prune import Pruned

_PARITY_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OneShot:
    """A pruned model with the name and seed it was made by, and how long that took."""

    name: str
    pruned: Pruned
    seed: int
    seconds: float


def report_of(shot: OneShot, artifact: Artifact | None, verdicts: tuple[VerdictRow, ...]) -> Report:
    """The report of one removal: costs before and after, proof, widths, pins."""
    pruned = shot.pruned
    dense = cost(pruned.analysis.captured)
    inputs = pruned.analysis.captured
    after = cost(capture(pruned.model, inputs.args, inputs.kwargs))
    return Report(
        dense=Figures(params=dense.params, macs=dense.macs),
        pruned=Figures(
            params=after.params,
            macs=after.macs,
            size_bytes=None if artifact is None else artifact.size_bytes,
        ),
        rounds=(
            Round(
                round=1,
                criterion=pruned.plan.criterion,
                keep_fraction=pruned.plan.unit_keep_fraction,
                proof=proof_row(pruned.proof) if pruned.proof.holds else None,
                accepted=True,
                seconds=shot.seconds,
                params=after.params,
                macs=after.macs,
                why="one removal without training",
            ),
        ),
        groups=tuple(
            GroupWidth(name=g.name, kind=g.kind, before=g.width, after=len(g.keep))
            for g in pruned.plan.groups
        ),
        pins=tuple(
            PinRow(unit=pin.unit, reason=pin.reason, where=pin.where)
            for pin in pruned.analysis.pins
        ),
        verdicts=verdicts,
        environment={"model": shot.name, "seed": shot.seed, **_versions()},
    )


def deliver(shot: OneShot, out: Path) -> Bundle:
    """Export, judge parity, and put everything at `out`; refuses a folder that is not ours."""
    check_destination(out)
    staging = staging_folder(out)
    staging.mkdir(parents=True, exist_ok=True)
    inputs = shot.pruned.analysis.captured
    shot.pruned.plan.save(staging / "plan.json")
    save(shot.pruned.model, staging)
    artifact = export(shot.pruned.model, staging / "model.onnx", inputs.args, inputs.kwargs)
    record = _parity_record(shot, artifact)
    write_parity(staging / "parity.npz", record)
    verdicts = judge(parity_evidence(artifact.path, record))
    rows = tuple(VerdictRow.of(verdict) for verdict in verdicts)
    made_from = Provenance(
        seeds={"run": shot.seed}, target="none", versions=_versions(), test_reads=0
    )
    return seal(out, report_of(shot, artifact, rows), made_from)


def _parity_record(shot: OneShot, artifact: Artifact) -> ParityRecord:
    """Inputs that vary, and what the pruned model gives for them, by the file's names."""
    captured = shot.pruned.analysis.captured
    inputs = captured.inputs
    if captured.dynamic_batch:
        inputs = resize_batch(inputs, _PARITY_SAMPLES)
    inputs = vary(inputs, shot.seed)
    outputs = torch_outputs(shot.pruned.model, inputs)
    names = [info.name for info in artifact.outputs]
    return ParityRecord(
        inputs=feeds(open_session(artifact.path, threads=1), inputs),
        outputs=dict(zip(names, outputs, strict=True)),
    )


def _versions() -> dict[str, str]:
    return {
        "edgeprune": edgeprune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
