"""The tables of a recipe: every key with its unit, default and range. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from edgeprune.errors import UsageError
from edgeprune.recipe.inputs import parse_inputs
from edgeprune.recipe.table import Section


class ModelSection(Section):
    """[model]: the trained network."""

    factory: str = Field(
        description="Where the model comes from: `file.py:function` (relative to the recipe), "
        "`package.module:function`, `torchvision:NAME`, `timm:NAME`, a `.pt2` file of "
        "torch.export.save, or an `.onnx` file of a float model. The function takes nothing and "
        "returns an nn.Module or (module, args, kwargs).",
        min_length=3,
        examples=["model.py:build", "torchvision:resnet18", "timm:vit_tiny_patch16_224"],
    )
    weights: str | None = Field(
        default=None,
        description="File of trained weights, relative to the recipe: safetensors, or what "
        "torch.load reads with weights_only=True, a state dict or a checkpoint with exactly one in "
        "it. A prefix `module.` or `_orig_mod.` of every key is dropped; then every key must fit. "
        "Default: as the factory gives them.",
        examples=["dense.safetensors"],
    )
    input: str | None = Field(
        default=None,
        description="Shapes of the example inputs, batch first: `2x3x224x224[:dtype]`, several "
        "joined by commas. Default: the factory's or the file's own example, or what the zoo "
        "knows.",
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


class RepairSection(Section):
    """[repair]: least squares on calibration inputs after each removal, before training."""

    samples: int = Field(
        default=512,
        description="Calibration inputs that the repair reads, 0-100000; a quarter of them judges "
        "it. No labels are needed. 0 = no repair; otherwise at least 2.",
        ge=0,
        le=100_000,
    )
    ridge: float = Field(
        default=1e-3,
        description="Pull towards the weights as they are, in mean diagonals of the normal "
        "equations, above 0, at most 1.",
        gt=0.0,
        le=1.0,
    )

    @field_validator("samples")
    @classmethod
    def _one_cannot_judge(cls, value: int) -> int:
        if value == 1:
            raise ValueError("0, or at least 2 samples: one to fit and one to judge")
        return value


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
    threads: int | None = Field(
        default=None,
        description="Threads that torch trains with, 1-256. Small networks are often faster with "
        "one, and the same number gives the same bits on machines with other cores. Default: "
        "torch's own choice.",
        ge=1,
        le=256,
        examples=[1],
    )


class ExportSection(Section):
    """[export]: the ONNX file."""

    opset: int = Field(default=20, description="ONNX operator set, 18-23.", ge=18, le=23)
    precision: tuple[Literal["fp32"], ...] = Field(
        default=("fp32",),
        description="Precisions to deliver; fp32.",
        min_length=1,
        max_length=1,
        strict=False,  # TOML has lists, not tuples
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
        examples=[4],
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
        description="Largest drop on the test split, dense minus pruned, from 0: of accuracy as a "
        "share (0.01 = one point), of a metric of your own in its unit.",
        ge=0.0,
    )
    speedup: float | None = Field(
        default=None,
        description="Smallest ratio of latencies, dense / pruned, above 0. Default: not judged.",
        gt=0.0,
        le=1000.0,
        examples=[2.0],
    )
    latency_ms: float | None = Field(
        default=None,
        description="Largest median latency in milliseconds, above 0. Default: not judged.",
        gt=0.0,
        examples=[8.0],
    )
    size_ratio: float | None = Field(
        default=None,
        description="Largest size of model.onnx, pruned / dense, above 0, at most 1. "
        "Default: not judged.",
        gt=0.0,
        le=1.0,
        examples=[0.5],
    )
    size_mib: float | None = Field(
        default=None,
        description="Largest size of model.onnx in MiB, above 0. Default: not judged.",
        gt=0.0,
        examples=[1.5],
    )
    parity: float | None = Field(
        default=None,
        description="Largest difference between ONNX Runtime and PyTorch, relative to the spread "
        "of the output, above 0, at most 0.1. Default: 0.0001, of float16 outputs 0.01.",
        gt=0.0,
        le=0.1,
        examples=[0.001],
    )
    confidence: float | None = Field(
        default=None,
        description="Judge the bound of this confidence, 0.5-0.999, instead of the observed "
        "accuracy drop. Default: the observed drop.",
        ge=0.5,
        le=0.999,
        examples=[0.95],
    )
