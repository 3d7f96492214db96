"""The tables of a recipe: every key with its unit, default and range. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from edgeprune.errors import UsageError
from edgeprune.recipe.inputs import parse_inputs


class Section(BaseModel):
    """A table of the recipe: frozen, and closed to keys that are not listed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(Section):
    """[model]: the trained network."""

    factory: str = Field(
        description="Where the model comes from: `file.py:function` (relative to the recipe), "
        "`package.module:function` or `torchvision:NAME`. The function takes nothing and returns "
        "an nn.Module or (module, args, kwargs).",
        min_length=3,
        examples=["model.py:build", "torchvision:resnet18"],
    )
    weights: str | None = Field(
        default=None,
        description="File of trained weights, relative to the recipe: safetensors, or a state "
        "dict that torch.load reads with weights_only=True. Default: as the factory gives them.",
        examples=["dense.safetensors"],
    )
    input: str | None = Field(
        default=None,
        description="Shapes of the example inputs, batch first: `2x3x224x224[:dtype]`, several "
        "joined by commas. Default: the factory's own example, or what torchvision knows.",
        examples=["2x1x28x28", "2x128:int64"],
    )

    @field_validator("input")
    @classmethod
    def _input_can_be_read(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_inputs(value)
            except UsageError as error:
                raise ValueError("sizes joined by 'x' and a known dtype") from error
        return value


class DataSection(Section):
    """[data]: the splits, the metric and the loss."""

    factory: str = Field(
        description="`file.py:function` or `package.module:function`; the function takes nothing "
        "and returns edgeprune.Data(train, validation, test, calibration, metric, loss).",
        min_length=3,
        examples=["data.py:load"],
    )


class BudgetSection(Section):
    """budget: how much of the model may stay."""

    keep_fraction: float = Field(
        description="Share of units kept at the end, 0-1: of every group with allocation "
        "'uniform', of all units together with 'global'.",
        gt=0.0,
        le=1.0,
        examples=[0.5],
    )


class PruneSection(Section):
    """[prune]: what to remove, in how many rounds, and when to stop."""

    budget: BudgetSection = Field(description="How much of the model may stay.")
    criterion: str = Field(
        default="l2",
        description="Name of the criterion that scores units; built in are l1, l2 and random.",
        min_length=1,
    )
    allocation: Literal["uniform", "global"] = Field(
        default="uniform",
        description="uniform: the same share of every group; global: the highest scores anywhere.",
    )
    rounds: int = Field(
        default=4, description="Rounds of score, remove, recover; 1-100.", ge=1, le=100
    )
    max_accuracy_drop: float = Field(
        default=0.01,
        description="The guard: largest drop of validation accuracy below the dense model, as a "
        "share (0.01 = one point), 0-1. A round that drops more is not accepted.",
        ge=0.0,
        le=1.0,
    )
    multiple: int | None = Field(
        default=None,
        description="Widths are kept at multiples of this many units, 1-256. "
        "Default: the target's channel multiple.",
        ge=1,
        le=256,
    )
    seed: int = Field(
        default=0, description="Seed of everything random in the run, from 0.", ge=0, lt=2**32
    )
    exact_only: bool = Field(
        default=False,
        description="Whether to pin what redefines a statistic (the width of LayerNorm, RMSNorm).",
    )


class RecoverSection(Section):
    """[recover]: training after each removal."""

    epochs: float = Field(
        default=1.0,
        description="Passes over the training split per round, fractions allowed, 0-1000; "
        "0 = no training.",
        ge=0.0,
        le=1000.0,
    )
    final_epochs: float = Field(
        default=0.0,
        description="Passes over the training split added after the last round, 0-1000.",
        ge=0.0,
        le=1000.0,
    )
    learning_rate: float = Field(
        default=0.05,
        description="Peak step size of the optimiser, above 0, at most 10.",
        gt=0,
        le=10,
    )
    weight_decay: float = Field(
        default=1e-4, description="Decay of matrices and kernels per step, 0-1.", ge=0.0, le=1.0
    )
    distillation: float = Field(
        default=0.9,
        description="Weight of the dense model's outputs in the loss, 0-1; the rest is the task.",
        ge=0.0,
        le=1.0,
    )
    temperature: float = Field(
        default=2.0,
        description="Softening of class scores in distillation, 0.1-100.",
        ge=0.1,
        le=100,
    )


class ExportSection(Section):
    """[export]: the ONNX file."""

    opset: int = Field(default=20, description="ONNX operator set, 18-23.", ge=18, le=23)
    precision: tuple[Literal["fp32"], ...] = Field(
        default=("fp32",), description="Precisions to deliver; fp32.", min_length=1, max_length=1
    )


class TargetSection(Section):
    """[target]: the device that the build is for."""

    name: str = Field(
        default="local",
        description="Name of a shipped target profile, or a .toml file relative to the recipe.",
        min_length=1,
    )
    threads: int | None = Field(
        default=None,
        description="Threads of the runtime, 1-256. Default: the target's.",
        ge=1,
        le=256,
    )
    batch: int | None = Field(
        default=None,
        description="Samples per inference when latency is measured, 1-1024. "
        "Default: the target's.",
        ge=1,
        le=1024,
    )


class GatesSection(Section):
    """[gates]: what the build must meet to pass."""

    accuracy_drop: float = Field(
        default=0.01,
        description="Largest drop of test accuracy, dense minus pruned, as a share, 0-1.",
        ge=0.0,
        le=1.0,
    )
    speedup: float | None = Field(
        default=None,
        description="Smallest ratio of latencies, dense / pruned, above 0. Default: not judged.",
        gt=0.0,
        le=1000.0,
    )
    latency_ms: float | None = Field(
        default=None,
        description="Largest median latency in milliseconds, above 0. Default: not judged.",
        gt=0.0,
    )
    size_ratio: float | None = Field(
        default=None,
        description="Largest size of model.onnx, pruned / dense, above 0, at most 1. "
        "Default: not judged.",
        gt=0.0,
        le=1.0,
    )
    size_mib: float | None = Field(
        default=None,
        description="Largest size of model.onnx in MiB, above 0. Default: not judged.",
        gt=0.0,
    )
    parity: float = Field(
        default=1e-4,
        description="Largest difference between ONNX Runtime and PyTorch, relative to the spread "
        "of the output, above 0, at most 0.1.",
        gt=0.0,
        le=0.1,
    )
    confidence: float | None = Field(
        default=None,
        description="Judge the bound of this confidence, 0.5-0.999, instead of the observed "
        "accuracy drop. Default: the observed drop.",
        ge=0.5,
        le=0.999,
    )
