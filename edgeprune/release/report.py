"""`report.json`: everything a run found out, as frozen models. The schema is published.

Shares and accuracies are 0-1, sizes bytes, times milliseconds or seconds as named. `null` means
not measured; nothing is ever filled in.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from edgeprune.gates.verdict import Outcome, Verdict

Metric: TypeAlias = Literal["accuracy", "own"]
Scalar: TypeAlias = str | int | float | bool | None

EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}


class Row(BaseModel):
    """A frozen part of the report, closed to keys that are not listed."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )


class Latency(Row):
    """Latency of one inference in milliseconds."""

    p50: float = Field(ge=0, description="Median, milliseconds.")


class Figures(Row):
    """What one model costs and achieves."""

    accuracy: float | None = Field(
        default=None, description="The metric on the test split; accuracy is 0-1. null: no labels."
    )
    params: int = Field(ge=0, description="Parameters.")
    macs: int = Field(ge=0, description="Multiply-accumulates of one sample.")
    size_bytes: int | None = Field(default=None, ge=0, description="Size of model.onnx, bytes.")
    latency_ms: Latency | None = Field(default=None, description="null: not measured.")


class Speedup(Row):
    """Latency of the dense model divided by that of the pruned one, and its 95 % interval."""

    ratio: float = Field(gt=0, description="dense / pruned; above 1 is faster.")
    low: float = Field(gt=0, description="Lower end of the interval.")
    high: float = Field(gt=0, description="Upper end of the interval.")
    pairs: int = Field(ge=1, description="Paired runs in fresh processes.")


class Guard(Row):
    """What each round was held against: the dense model on the validation split."""

    dense_accuracy: float = Field(description="The dense model's metric on validation.")
    max_accuracy_drop: float = Field(ge=0, description="Largest drop that is accepted, a share.")


class RoundAccuracy(Row):
    """The metric on validation at three moments of a round; null where it was not taken."""

    removed: float | None = Field(default=None, description="Right after the removal.")
    repaired: float | None = Field(default=None, description="After repair without training.")
    recovered: float | None = Field(default=None, description="After training.")


class RoundProof(Row):
    """The shrunk model against the dense model with the removed units silenced."""

    error: float = Field(
        ge=0, description="Largest difference, in standard deviations of the output."
    )
    change: float = Field(
        ge=0, description="Largest change that the removal makes, in the same unit."
    )
    tolerance: float | None = Field(default=None, description="Largest error that is accepted.")
    precision: Literal["float32", "float64"] = Field(
        default="float32", description="Precision in which the error was decided."
    )
    control: float | None = Field(
        default=None,
        description="Smallest error of deliberately wrong removals; null: none could be tried.",
    )
    weak: bool = Field(default=False, description="Whether the controls failed to stand out.")


class RoundRepair(Row):
    """What least squares on unlabelled inputs did, before any training.

    Errors are squared differences to the model before the removal, as shares of its outputs'
    variance, on held-out samples.
    """

    layers: int = Field(ge=0, description="Layers that lost inputs.")
    refitted: int = Field(ge=0, description="Layers that came out better and were kept.")
    samples: int = Field(ge=0, description="Inputs used, a quarter of them only to judge.")
    error_before: float = Field(description="Of the model's outputs, right after the removal.")
    error_after: float = Field(description="Of the model's outputs, as the repair left them.")
    kept: bool = Field(description="false: the whole was no better, and is as it was.")
    why: str = Field(default="", description="Why it was not kept.")


class Round(Row):
    """One round: score, remove, prove, recover, judge."""

    round: int = Field(ge=1, description="Counted from 1.")
    criterion: str = Field(description="Name of the criterion that scored the units.")
    keep_fraction: float = Field(ge=0, le=1, description="Share of the dense units kept.")
    accuracy: RoundAccuracy = Field(default=RoundAccuracy(), description="On validation.")
    proof: RoundProof | None = Field(default=None, description="null: the round removed nothing.")
    repair: RoundRepair | None = Field(default=None, description="null: there was none.")
    accepted: bool = Field(description="Whether the guard accepted it.")
    seconds: float = Field(ge=0, description="How long the round took, seconds.")
    params: int | None = Field(default=None, ge=0, description="Parameters after the round.")
    macs: int | None = Field(default=None, ge=0, description="Multiply-accumulates, one sample.")
    latency_ms: float | None = Field(default=None, ge=0, description="Median, milliseconds.")
    why: str = Field(default="", description="Why it was or was not accepted.")


class FinalTraining(Row):
    """The epochs after the last round; undone where validation came out worse."""

    accuracy: float | None = Field(description="On validation afterwards; null: no labels.")
    accepted: bool = Field(description="Whether the model after it is the one delivered.")


class GroupWidth(Row):
    """Units that compete for one width, before and after."""

    name: str = Field(description="Where the group begins, such as a parameter's name.")
    kind: str = Field(description="What a unit is: channel, head, ...")
    before: int = Field(ge=0, description="Units in the dense model.")
    after: int = Field(ge=0, description="Units in the pruned model.")


class PinRow(Row):
    """Units that may not go."""

    unit: str = Field(description="The unit, or the group of units.")
    reason: str = Field(description="Why it may not go.")
    where: str = Field(default="", description="The line of the user's model, file:line.")


class VerdictRow(Row):
    """What a gate found."""

    gate: str = Field(description="Name of the gate.")
    outcome: Outcome = Field(description="pass, fail or inconclusive.")
    observed: float | None = Field(default=None, description="The figure judged.")
    limit: float = Field(description="What it was held against.")
    unit: str = Field(default="", description="Unit of observed, limit and interval.")
    interval: tuple[float, float] | None = Field(default=None, description="95 %, low and high.")
    count: int | None = Field(default=None, ge=0, description="Samples or pairs behind it.")
    why: str = Field(default="", description="How the figure came about, or what is missing.")

    @classmethod
    def of(cls, verdict: Verdict) -> VerdictRow:
        """A gate's verdict as a row of the report."""
        return cls(**asdict(verdict))

    def line(self) -> str:
        """The verdict in one line, as the gate words it."""
        return Verdict(**self.model_dump()).line()


class Report(Row):
    """The whole report. `environment` names model, target, runtime versions and machine."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="This schema.")
    dense: Figures = Field(description="The model as it came.")
    pruned: Figures | None = Field(description="What is delivered; null: nothing is.")
    speedup: Speedup | None = Field(default=None, description="null: not measured.")
    metric: Metric = Field(
        default="accuracy", description="What the accuracies are: shares, or a metric of one's own."
    )
    guard: Guard | None = Field(default=None, description="null: no labels to judge by.")
    rounds: tuple[Round, ...] = Field(default=(), description="In order.")
    final: FinalTraining | None = Field(default=None, description="null: no final training.")
    groups: tuple[GroupWidth, ...] = Field(default=(), description="Widths before and after.")
    pins: tuple[PinRow, ...] = Field(default=(), description="What could not be removed.")
    verdicts: tuple[VerdictRow, ...] = Field(default=(), description="One a gate.")
    environment: dict[str, Scalar] = Field(default_factory=dict, description="Where it was made.")

    @property
    def outcome(self) -> Outcome:
        """fail if a gate failed, else inconclusive if any is or none was judged, else pass."""
        outcomes = {verdict.outcome for verdict in self.verdicts}
        if "fail" in outcomes:
            return "fail"
        return "pass" if outcomes == {"pass"} else "inconclusive"

    @property
    def exit_code(self) -> int:
        """0 passed, 1 a gate failed, 3 inconclusive."""
        return EXIT_CODES[self.outcome]

    def to_json(self) -> str:
        """The text of report.json, ending in a newline."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def schema_text() -> str:
    """The JSON schema of report.json, as report.schema.json holds it."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(by_alias=True),
        "title": "edgeprune report",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def published_schema() -> str:
    """The committed schema file that ships with the package."""
    return (resources.files("edgeprune.release") / "report.schema.json").read_text(encoding="utf-8")
