"""Times for a check: measured here, imported from a device, or honestly missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import DataError
from edgeprune.gates.judging import judge
from edgeprune.gates.latency import LatencyEvidence
from edgeprune.gates.process import ProcessEvidence
from edgeprune.gates.verdict import Verdict
from edgeprune.measure.here import how_to_measure, in_range, same_arch, why_not_here
from edgeprune.measure.lineup import measure_lineup
from edgeprune.measure.pairs import measure_pairs
from edgeprune.measure.result import file_sha256
from edgeprune.measure.samples import PairedSamples
from edgeprune.measure.saved import Saved, paired_of, read_saved
from edgeprune.measure.settings import Settings
from edgeprune.targets import Target

_P90 = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyLimits:
    """Limits of time and memory; None is not judged, unless the target's own budget has one.

    p50_ms and p90_ms bound percentiles in ms, speedup bounds baseline / build from below; load_ms
    and first_ms bound making a session and its first inference, peak_rss_mib the process in MiB.
    """

    p50_ms: float | None = None
    p90_ms: float | None = None
    speedup: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_rss_mib: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Verdicts on latency, and what was not judged and why."""

    verdicts: tuple[Verdict, ...]
    not_judged: tuple[str, ...]


def judge_times(
    limits: LatencyLimits,
    model: Path,
    baseline: Path | None,
    target: Target,
    *,
    imported: Path | None = None,
    settings: Settings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Times:
    """Measure, or read what was measured on the device, and judge every limit there is.

    Raises DataError for an import that is not of these files or this target, UsageError and
    EnvironmentFailed where measuring fails.
    """
    asked = with_budget(limits, target, has_baseline=baseline is not None)
    notes = _not_asked(limits, target, has_baseline=baseline is not None)
    if asked == LatencyLimits():
        none = "latency: no limit, and the target's budget has none that can be judged"
        return Times(verdicts=(), not_judged=(none, *notes))
    if imported is not None:
        saved = read_saved(imported)
        notes += _require_fitting(saved, imported, target)
        paired = paired_of(
            saved, imported, _identity(model), None if baseline is None else _identity(baseline)
        )
    elif (reason := why_not_here(target)) is not None:
        return Times(verdicts=not_timed(asked, target, model, reason), not_judged=notes)
    elif baseline is None:
        paired = measure_lineup([model], target, settings, progress=progress).pair(None, 0)
    else:
        paired = measure_pairs(baseline, model, target, settings, progress=progress)
    return Times(verdicts=judge_paired(asked, paired), not_judged=notes)


def with_budget(limits: LatencyLimits, target: Target, *, has_baseline: bool) -> LatencyLimits:
    """The call's limits win over those that come with the device."""
    budget = target.budget
    speedup = limits.speedup
    if speedup is None and has_baseline and budget.regression_pct is not None:
        speedup = 1 / (1 + budget.regression_pct / 100)
    absolute = {
        name: getattr(budget, name) if getattr(limits, name) is None else getattr(limits, name)
        for name in ("p50_ms", "p90_ms", "load_ms", "first_ms", "peak_rss_mib")
    }
    return LatencyLimits(speedup=speedup, **absolute)


def _not_asked(limits: LatencyLimits, target: Target, *, has_baseline: bool) -> tuple[str, ...]:
    """What the target's budget asks for and nothing here can be held against."""
    slower = target.budget.regression_pct
    if slower is None or has_baseline or limits.speedup is not None:
        return ()
    return (
        f"speedup: the target allows {slower:g} % more than the baseline's latency, and there is "
        f"no --baseline",
    )


def judge_paired(asked: LatencyLimits, paired: PairedSamples) -> tuple[Verdict, ...]:
    """A verdict on every limit there is, from times that were taken."""
    verdicts: tuple[Verdict, ...] = ()
    if asked.p50_ms is not None or asked.speedup is not None:
        evidence = LatencyEvidence(
            paired=paired, limit_ms=asked.p50_ms, least_speedup=asked.speedup
        )
        verdicts += judge(evidence)
    if asked.p90_ms is not None:
        verdicts += judge(LatencyEvidence(paired=paired, limit_ms=asked.p90_ms, percentile=_P90))
    return verdicts + judge(
        ProcessEvidence(
            processes=paired.candidate,
            confidence=paired.settings.confidence,
            load_ms=asked.load_ms,
            first_ms=asked.first_ms,
            peak_rss_mib=asked.peak_rss_mib,
        )
    )


def not_timed(
    asked: LatencyLimits, target: Target, model: Path, reason: str
) -> tuple[Verdict, ...]:
    """Inconclusive for every limit, with the way to measure it; reason: why it was not here."""
    named = (
        ("latency", asked.p50_ms, "ms"),
        ("latency_p90", asked.p90_ms, "ms"),
        ("speedup", asked.speedup, "x"),
        ("process_load", asked.load_ms, "ms"),
        ("process_first", asked.first_ms, "ms"),
        ("process_memory", asked.peak_rss_mib, "MiB"),
    )
    why = (
        f"no time was taken: this machine is not target '{target.name}' ({reason}). "
        f"{how_to_measure(target, model.name)}"
    )
    return tuple(
        Verdict(
            gate=gate,
            outcome="inconclusive",
            observed=None,
            limit=limit,
            unit=unit,
            interval=None,
            count=None,
            why=why,
        )
        for gate, limit, unit in named
        if limit is not None
    )


def _require_fitting(saved: Saved, path: Path, target: Target) -> tuple[str, ...]:
    """Refuse times of another kind of machine; say what a file does not tell."""
    arch = saved.before.arch
    if not arch:
        told = "machine, threads and file hashes"
        return (f"imported times: {path.name} does not tell {told}; they are taken on trust",)
    if target.cpu.arch is not None and same_arch(arch) != same_arch(target.cpu.arch):
        raise _misfit(path, f"times of a {target.cpu.arch} machine", f"those of {arch}")
    missing = [name for name in target.cpu.isa if name not in saved.isa]
    if missing:
        raise _misfit(path, f"a machine with {', '.join(missing)}", "one without")
    extra = [name for name in target.cpu.isa_absent if name in saved.isa]
    if extra:
        raise _misfit(path, f"a machine without {', '.join(extra)}", "one with it")
    for what, got, wanted in (
        ("thread(s)", saved.threads, target.runtime.threads),
        ("sample(s) an inference", saved.batch, target.runtime.batch),
    ):
        if got != wanted:
            raise _misfit(path, f"{wanted} {what}", str(got))
    versions = {s.onnxruntime for m in saved.models for s in m.samples}
    wanted_range = target.runtime.onnxruntime
    other = sorted(version for version in versions if not in_range(wanted_range, version))
    if other:
        raise _misfit(path, f"times of ONNX Runtime {wanted_range}", f"those of {other[0]}")
    return _require_processor(saved.before.cpu_model, path, target)


def _require_processor(cpu_model: str, path: Path, target: Target) -> tuple[str, ...]:
    """A measured profile is of one processor; of another, names in data sheets may differ."""
    cores = [cluster.core for cluster in target.cpu.clusters]
    if not cores or cpu_model in cores:
        return ()
    if target.status == "measured":
        raise _misfit(path, f"times of {', '.join(cores)}", f"those of {cpu_model}")
    return (
        f"imported times: times of {cpu_model}; the target has {', '.join(cores)}: taken on trust",
    )


def _misfit(path: Path, expected: str, got: str) -> DataError:
    return DataError(
        f"reading measurements at {path}: expected {expected}, as the target has, got {got}. "
        f"Measure on the target, as it is to be run.",
        where=str(path),
    )


def _identity(path: Path) -> tuple[str, str]:
    return path.name, file_sha256(path)
