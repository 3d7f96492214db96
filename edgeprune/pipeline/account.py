"""The account of a run: report and provenance, from what the stages gave."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata

import edgeprune
from edgeprune.exporting.onnx import Artifact
from edgeprune.gates.verdict import Verdict
from edgeprune.graph.capture import Captured
from edgeprune.measure.intervals import latency_ms, ratio
from edgeprune.measure.machine import machine_state
from edgeprune.measure.samples import Samples
from edgeprune.pipeline.delivery import Delivery
from edgeprune.pipeline.judgement import Judgement
from edgeprune.pipeline.preparation import Job
from edgeprune.pipeline.rounds import Pruning
from edgeprune.pipeline.work import target_hash
from edgeprune.planning.cost import cost
from edgeprune.release.manifest import Provenance
from edgeprune.release.report import (
    Figures,
    GroupWidth,
    Guard,
    Latency,
    PinRow,
    Report,
    Scalar,
    Speedup,
    VerdictRow,
)

_PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")


def report_of(job: Job, pruning: Pruning, delivery: Delivery, judgement: Judgement) -> Report:
    """Everything that was found out."""
    paired = judgement.paired
    found = None if paired is None else ratio(paired)
    return Report(
        dense=_figures(
            job.dense.captured,
            judgement.dense_accuracy,
            delivery.dense,
            () if paired is None else paired.baseline,
        ),
        pruned=_figures(
            pruning.state.analysis.captured,
            judgement.pruned_accuracy,
            delivery.pruned,
            () if paired is None else paired.candidate,
        ),
        speedup=None if found is None else Speedup(**asdict(found)),
        metric="accuracy" if job.data.metric is None else "own",
        guard=_guard(job),
        rounds=pruning.rounds,
        final=pruning.final,
        groups=tuple(
            GroupWidth(name=g.name, kind=g.kind, before=g.width, after=len(g.keep))
            for g in pruning.plan.groups
        ),
        pins=_pins(job),
        verdicts=tuple(VerdictRow.of(verdict) for verdict in judgement.verdicts),
        environment=_environment(job),
    )


def report_of_failed_proof(job: Job, why: str) -> Report:
    """The report when nothing may be delivered."""
    verdict = Verdict(
        gate="proof",
        outcome="fail",
        observed=None,
        limit=0.0,
        unit="std",
        interval=None,
        count=None,
        why=why,
    )
    return Report(
        dense=_figures(job.dense.captured, None, None, ()),
        pruned=None,
        guard=_guard(job),
        pins=_pins(job),
        verdicts=(VerdictRow.of(verdict),),
        environment=_environment(job),
    )


def provenance_of(job: Job, done: int, test_reads: int) -> Provenance:
    """What the manifest says of the making: hashes, seeds, versions, reads of the test split.

    done: how many rounds there were, refused ones counted.
    """
    rounds = range(1, done + 1)
    seeds = {"run": job.seed, "measurement": job.measuring.seed}
    seeds |= {f"training of round {number}": job.seed + number for number in rounds}
    if done and job.recipe.recover.final_epochs > 0:
        seeds["final training"] = job.seed + done + 1
    return Provenance(
        recipe_sha256=job.recipe_sha256,
        seeds=seeds,
        target=job.target.name,
        target_sha256=target_hash(job.target),
        versions=_versions(),
        test_reads=test_reads,
    )


def _figures(
    captured: Captured,
    accuracy: float | None,
    artifact: Artifact | None,
    samples: tuple[Samples, ...],
) -> Figures:
    figures = cost(captured)
    return Figures(
        accuracy=accuracy,
        params=figures.params,
        macs=figures.macs,
        size_bytes=None if artifact is None else artifact.size_bytes,
        latency_ms=Latency(p50=latency_ms(samples).ms) if samples else None,
    )


def _guard(job: Job) -> Guard | None:
    if job.dense_accuracy is None:
        return None
    return Guard(
        dense_accuracy=job.dense_accuracy,
        max_accuracy_drop=job.recipe.prune.max_accuracy_drop,
    )


def _pins(job: Job) -> tuple[PinRow, ...]:
    return tuple(PinRow(unit=p.unit, reason=p.reason, where=p.where) for p in job.dense.pins)


def _versions() -> dict[str, str]:
    versions = {"edgeprune": edgeprune.__version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in _PACKAGES}


def _environment(job: Job) -> dict[str, Scalar]:
    machine = machine_state()
    return {
        "model": job.model_name,
        "target": job.target.name,
        "threads": job.target.runtime.threads,
        "batch": job.target.runtime.batch,
        "cpu": machine.cpu_model,
        "arch": machine.arch,
        "cores": machine.cores,
        "governor": machine.governor,
        **_versions(),
    }
