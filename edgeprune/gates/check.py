"""Check a build before it ships: gather the evidence that limits ask for, and judge it. No torch.

What is not asked for is not judged, and said so. A target that this machine is not gets no time:
its latency is inconclusive, with the way to measure it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx

from edgeprune.errors import OutputsNotFinite, UsageError
from edgeprune.gates.accuracy import AccuracyEvidence, paired_counts
from edgeprune.gates.accuracy_min import FloorEvidence
from edgeprune.gates.accuracy_ratio import RatioEvidence
from edgeprune.gates.contract import ContractEvidence, interface_of
from edgeprune.gates.flips import FlipsEvidence, count_flips
from edgeprune.gates.judging import judge
from edgeprune.gates.latency_check import LatencyLimits, judge_times, with_budget
from edgeprune.gates.operators import OperatorsEvidence
from edgeprune.gates.parity import parity_evidence, read_parity
from edgeprune.gates.prediction import Predictions, predict
from edgeprune.gates.samples_file import SampleFile, read_samples
from edgeprune.gates.size import SizeEvidence, model_bytes
from edgeprune.gates.verdict import Verdict
from edgeprune.measure.settings import Settings
from edgeprune.measure.trial import require_loadable
from edgeprune.recipe.data import Array, apply_metric, check_labels
from edgeprune.recipe.onnx_file import operators_of, opset_of, read_model
from edgeprune.targets import Target

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a build must meet; None is not judged, or of parity the default. Shares are 0-1."""

    latency: LatencyLimits = field(default_factory=LatencyLimits)
    size_mib: float | None = None
    size_ratio: float | None = None
    accuracy_drop: float | None = None
    accuracy_min: float | None = None
    confidence: float | None = None
    flips: float | None = None
    parity: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Files to check and what to hold them against.

    data: an `.npz` of samples; parity: one of recorded outputs; imported: times from a device.
    """

    model: Path
    target: Target
    limits: Limits = field(default_factory=Limits)
    baseline: Path | None = None
    data: Path | None = None
    parity: Path | None = None
    imported: Path | None = None
    measuring: Settings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Verdicts, and what was not judged and why."""

    verdicts: tuple[Verdict, ...]
    not_judged: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Findings:
    verdicts: list[Verdict] = field(default_factory=list)
    not_judged: list[str] = field(default_factory=list)


def check(
    request: Request, *, stage: Say = lambda _: None, step: Callable[[int, int], None] | None = None
) -> Check:
    """Judge `request.model`; `stage` is told what is being done, `step` counts pairs of processes.

    Raises UsageError and DataError for files that cannot be read or do not fit the model or a
    limit that lacks what it needs, EnvironmentFailed where measuring fails.
    """
    _require_what_limits_need(request)
    found = _Findings()
    stage("read the files")
    model = read_model(request.model)
    baseline = None if request.baseline is None else read_model(request.baseline)
    _judge_form(request, model, baseline, found)
    _judge_size(request, found)
    if any(v.gate == "operators" and v.outcome == "fail" for v in found.verdicts):
        found.not_judged.append("all that runs the file: the target does not take it")
        return Check(verdicts=tuple(found.verdicts), not_judged=tuple(found.not_judged))
    for path in filter(None, (request.model, request.baseline)):
        require_loadable(path)
    stage("compare outputs")
    _judge_parity(request, found)
    _judge_answers(request, found)
    stage("measure latency")
    times = judge_times(
        request.limits.latency,
        request.model,
        request.baseline,
        request.target,
        imported=request.imported,
        settings=request.measuring,
        progress=step,
    )
    found.verdicts += times.verdicts
    found.not_judged += times.not_judged
    return Check(verdicts=tuple(found.verdicts), not_judged=tuple(found.not_judged))


def _require_what_limits_need(request: Request) -> None:
    """A limit whose evidence cannot come is a mistake of the call, not a verdict."""
    limits = request.limits
    _require_numbers(limits)
    needs = (
        ("--speedup", limits.latency.speedup, "--baseline", request.baseline),
        ("--size-ratio", limits.size_ratio, "--baseline", request.baseline),
        ("--accuracy-drop", limits.accuracy_drop, "--baseline", request.baseline),
        ("--accuracy-drop", limits.accuracy_drop, "--data", request.data),
        ("--accuracy-min", limits.accuracy_min, "--data", request.data),
        ("--max-flips", limits.flips, "--baseline", request.baseline),
        ("--max-flips", limits.flips, "--data", request.data),
    )
    for option, limit, need, given in needs:
        if limit is not None and given is None:
            raise UsageError(
                f"checking at {option}: expected {need} beside it, got none. Give {need}, or "
                f"leave {option} out.",
                where=option,
            )
    asked = with_budget(limits.latency, request.target, has_baseline=request.baseline is not None)
    if request.imported is not None and asked == LatencyLimits():
        raise UsageError(
            "checking at --import: expected a latency limit beside it, such as --latency-ms, got "
            "none. Give a limit, or leave --import out.",
            where="--import",
        )


def _require_numbers(limits: Limits) -> None:
    """No figure can be held against NaN or infinity."""
    for name, value in (asdict(limits) | asdict(limits.latency)).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(
                f"checking at limit {name}: expected a finite number, got {value}. Leave it out, "
                f"or give what must hold.",
                where=name,
            )


def _judge_form(
    request: Request, model: onnx.ModelProto, baseline: onnx.ModelProto | None, found: _Findings
) -> None:
    target = request.target
    found.verdicts += judge(
        OperatorsEvidence(
            found=tuple(operators_of(model).items()),
            opset=opset_of(model),
            target=target.name,
            allowed=target.operators.allowed,
            denied=target.operators.denied,
            max_opset=target.runtime.max_opset,
        )
    )
    if baseline is None:
        found.not_judged.append("contract: no --baseline to compare inputs and outputs with")
        return
    found.verdicts += judge(
        ContractEvidence(baseline=interface_of(baseline), candidate=interface_of(model))
    )


def _judge_size(request: Request, found: _Findings) -> None:
    own, budget = request.limits.size_mib, request.target.budget.model_mib
    limit_mib = budget if own is None else own
    if limit_mib is None and request.limits.size_ratio is None:
        found.not_judged.append("size: no --size-mib or --size-ratio")
        return
    found.verdicts += judge(
        SizeEvidence(
            pruned_bytes=model_bytes(request.model),
            dense_bytes=None if request.baseline is None else model_bytes(request.baseline),
            limit_mib=limit_mib,
            largest_ratio=request.limits.size_ratio,
        )
    )


def _judge_parity(request: Request, found: _Findings) -> None:
    if request.parity is None:
        found.not_judged.append("parity: no --parity with recorded outputs")
        return
    record = read_parity(request.parity)
    found.verdicts += judge(parity_evidence(request.model, record, limit=request.limits.parity))


def _judge_answers(request: Request, found: _Findings) -> None:
    """Accuracy and flips: everything that needs samples."""
    limits = request.limits
    ratio = request.target.budget.accuracy_min_ratio
    if ratio is not None and (request.data is None or request.baseline is None):
        found.not_judged.append(
            f"accuracy_ratio: the target asks for {ratio:g} of the baseline's accuracy, and there "
            f"is no --data with --baseline"
        )
    if request.data is None:
        found.not_judged.append("accuracy: no --data")
        return
    data = read_samples(request.data)
    base = None if request.baseline is None else _predicted(request.baseline, data)
    try:
        own = _predicted(request.model, data)
    except OutputsNotFinite as error:  # of the baseline it is a mistake, of a build a verdict
        found.verdicts.append(_not_finite(error))
        found.not_judged.append("accuracy and flips: the build's outputs are not numbers")
        return
    if limits.accuracy_min is not None:
        found.verdicts += judge(
            FloorEvidence(right=_right(own), samples=own.samples, least=limits.accuracy_min)
        )
    if limits.accuracy_drop is not None and base is not None:
        found.verdicts += judge(_drop(base, own, limits))
    if ratio is not None and base is not None:
        found.verdicts += judge(_ratio(base, own, ratio))
    if (limits.accuracy_min, limits.accuracy_drop, ratio) == (None, None, None):
        found.not_judged.append("accuracy: no --accuracy-min or --accuracy-drop")
    if base is None:
        return
    if limits.flips is not None:
        flipped = count_flips(_scores(base), _scores(own))
        found.verdicts += judge(
            FlipsEvidence(flipped=flipped, samples=own.samples, most=limits.flips)
        )
    elif _scores(base).ndim == 2 and _scores(base).shape == _scores(own).shape:
        flipped = count_flips(_scores(base), _scores(own))
        found.not_judged.append(
            f"flips: {flipped} of {own.samples} predictions differ from the baseline's, and "
            f"there is no --max-flips"
        )


def _not_finite(error: OutputsNotFinite) -> Verdict:
    return Verdict(
        gate="finite",
        outcome="fail",
        observed=None,
        limit=0.0,
        unit="differences",
        interval=None,
        count=None,
        why=str(error),
    )


def _predicted(path: Path, data: SampleFile) -> Predictions:
    """Outputs for all samples, in batches that the model takes; NaN is refused."""
    return predict(path, data.batches(_fixed_batch(path)))


def _fixed_batch(path: Path) -> int | None:
    """The batch that a model fixes: the first axis of its first input; None where it is dynamic."""
    inputs = interface_of(read_model(path)).inputs
    shape = inputs[0].shape if inputs else None
    return shape[0] if shape else None


def _drop(base: Predictions, own: Predictions, limits: Limits) -> AccuracyEvidence:
    largest = 0.0 if limits.accuracy_drop is None else limits.accuracy_drop
    if own.targets is None:
        return AccuracyEvidence(dense=None, pruned=None, largest_drop=largest, samples=own.samples)
    return AccuracyEvidence(
        dense=_accuracy(base),
        pruned=_accuracy(own),
        largest_drop=largest,
        counts=paired_counts(_scores(base), _scores(own), own.targets),
        confidence=limits.confidence,
        samples=own.samples,
    )


def _ratio(base: Predictions, own: Predictions, least: float) -> RatioEvidence:
    return RatioEvidence(
        dense=_accuracy(base), pruned=_accuracy(own), least=least, samples=own.samples
    )


def _accuracy(found: Predictions) -> float | None:
    """Share of samples whose label has the largest score; None without labels."""
    if found.targets is None:
        return None
    return apply_metric(None, _scores(found), found.targets)


def _right(found: Predictions) -> int | None:
    if found.targets is None:
        return None
    scores = _scores(found)
    share = apply_metric(None, scores, found.targets)  # checks shapes and labels
    check_labels("evaluated", found.targets, scores.shape[1])
    return round(share * found.samples)


def _scores(found: Predictions) -> Array:
    return _tuple_of(found)[0]


def _tuple_of(found: Predictions) -> tuple[Array, ...]:
    return found.outputs if isinstance(found.outputs, tuple) else (found.outputs,)
