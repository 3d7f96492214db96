"""What every table of a recipe is. No torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the recipe: frozen, and closed to keys that are not listed."""

    # Strict: `rounds = true` is a mistake, not 1. A whole number is a number for a float, though.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
