"""How long to train and how fast at each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized

from edgeprune.recipe.data import batches_of

WARMUP_SHARE = 0.1
"""Share of the steps in which the learning rate rises."""


def step_count(batches: Iterable[object], epochs: float) -> int:
    """Steps in `epochs` passes: the nearest integer, at least 1 when epochs > 0.

    10 batches, 0.5 epochs -> 5 steps; 3 batches, 0.1 epochs -> 1 step; 0 epochs -> 0 steps. A
    split that cannot tell its length is read through once.
    """
    if epochs <= 0:
        return 0
    count = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches_of(batches))
    return max(1, math.floor(epochs * count + 0.5)) if count else 0


def rate_share(step: int, steps: int) -> float:
    """Share (0-1) of the peak learning rate at `step` of `steps`, counted from 0.

    A straight rise over the first tenth, then half a cosine that ends just above 0. One step
    trains at the peak.
    """
    warmup = min(math.ceil(WARMUP_SHARE * steps), steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
