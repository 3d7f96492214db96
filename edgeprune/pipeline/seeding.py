"""Seeds: every step of a run starts from one of its own, whatever ran before it."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterable, Iterator

import numpy as np
import torch

# Where a DataLoader may have a generator.
_GENERATORS: tuple[tuple[str, ...], ...] = (
    ("generator",),
    ("sampler", "generator"),
    ("batch_sampler", "generator"),
    ("batch_sampler", "sampler", "generator"),
)


@contextlib.contextmanager
def seeded(seed: int, splits: Iterable[object] = ()) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and random for the block, and put them back.

    User code may draw from them. As each step seeds them anew, a step that is done after an
    interruption sees the numbers that it would have seen without one. So are generators of torch
    that a split or its samplers have (`DataLoader(generator=...)`), which stay where the block
    leaves them.
    """
    for split in splits:
        for path in _GENERATORS:
            generator = functools.reduce(lambda at, name: getattr(at, name, None), path, split)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
