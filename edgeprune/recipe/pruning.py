"""[prune]: the budget, and what may be removed on the way to it. No torch."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, cast, get_args

from pydantic import BeforeValidator, Field, model_validator

from edgeprune.errors import InternalError
from edgeprune.recipe.table import Section

BudgetKind: TypeAlias = Literal["keep_fraction", "macs_fraction", "params_fraction", "speedup"]
Pattern: TypeAlias = Annotated[str, Field(min_length=1)]
Share: TypeAlias = Annotated[float, Field(gt=0.0, le=1.0)]
Units: TypeAlias = Annotated[int, Field(ge=1)]


def _by_pattern(value: object) -> object:
    """One number for all as a table: 8 -> {"*": 8}."""
    return {"*": value} if isinstance(value, int) and not isinstance(value, bool) else value


class BudgetSection(Section):
    """budget: how much of the model may stay, or how fast it must become; exactly one key."""

    keep_fraction: float | None = Field(
        default=None,
        description="Share of units kept at the end, above 0, at most 1: of every group with "
        "allocation 'uniform', of all units together with 'global'.",
        gt=0.0,
        le=1.0,
        examples=[0.5],
    )
    macs_fraction: float | None = Field(
        default=None,
        description="Largest share of the dense model's multiply-accumulates at the end, above 0, "
        "at most 1.",
        gt=0.0,
        le=1.0,
        examples=[0.5],
    )
    params_fraction: float | None = Field(
        default=None,
        description="Largest share of the dense model's parameters at the end, above 0, at most 1.",
        gt=0.0,
        le=1.0,
        examples=[0.3],
    )
    speedup: float | None = Field(
        default=None,
        description="Smallest ratio of median latencies on the target, dense / pruned, 1-100; "
        "measured, so the target must be this machine.",
        ge=1.0,
        le=100.0,
        examples=[2.5],
    )

    @model_validator(mode="after")
    def _is_one(self) -> BudgetSection:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def kind(self) -> BudgetKind:
        """Which of the keys is given."""
        for name in get_args(BudgetKind):
            if getattr(self, name) is not None:
                return cast(BudgetKind, name)
        raise InternalError("budget at [prune] budget: expected one key, got none. Report this.")

    @property
    def value(self) -> float:
        """The value of that key."""
        return float(getattr(self, self.kind))


class PruneSection(Section):
    """[prune]: what to remove, in how many rounds, and when to stop."""

    budget: BudgetSection = Field(description="How much of the model may stay.")
    criterion: str = Field(
        default="l2",
        description="Name of the criterion that scores units; built in are l1, l2, taylor, "
        "gradient and random. taylor and gradient need labels in the training split.",
        min_length=1,
    )
    score_samples: int = Field(
        default=512,
        description="Labelled training samples behind the scores of a round, 1-1000000, fresh "
        "ones every round; read by taylor and gradient only.",
        ge=1,
        le=1_000_000,
    )
    allocation: Literal["uniform", "global"] = Field(
        default="uniform",
        description="uniform: the same share of every group; global: the highest scores anywhere.",
    )
    rounds: int = Field(
        default=4,
        description="Rounds of score, remove, repair, recover, in equal steps to the budget; "
        "1-100. A round that the guard refuses is tried again at half the step.",
        ge=1,
        le=100,
    )
    max_accuracy_drop: float = Field(
        default=0.01,
        description="The guard: largest drop of validation accuracy below the dense model, as a "
        "share (0.01 = one point), of a metric of your own in its unit, from 0. A round that "
        "drops more is undone; after three the run ends with the last accepted model.",
        ge=0.0,
    )
    keep: tuple[Pattern, ...] = Field(
        default=(),
        description="Tensors that lose nothing: shell patterns over their names. A width that "
        "would take positions from one of them stays whole.",
        strict=False,  # TOML has lists, not tuples
        examples=[("fc.*",)],
    )
    only: tuple[Pattern, ...] = Field(
        default=(),
        description="The only layers whose width may shrink: shell patterns over the weights that "
        "make it. Default: every layer.",
        strict=False,
        examples=[("layer3.*", "layer4.*")],
    )
    fractions: dict[Pattern, Share] = Field(
        default_factory=dict,
        description="Share of units kept at the end of layers that do not follow the budget, above "
        "0, at most 1, by shell pattern over the weights that make the width. Two shares for one "
        "width are an error.",
        examples=[{"layer4.*": 0.25}],
    )
    min_width: Annotated[
        dict[Pattern, Units],
        BeforeValidator(_by_pattern, json_schema_input_type=Units | dict[Pattern, Units]),
    ] = Field(
        default={"*": 1},
        description="Fewest units left of a width: a whole number from 1 for all, or by shell "
        "pattern as in fractions; of several that match, the largest holds. A narrower width "
        "stays whole.",
        examples=[8, {"*": 4, "layer4.*": 16}],
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
        description="Whether to pin what redefines a statistic (the width of LayerNorm).",
    )
