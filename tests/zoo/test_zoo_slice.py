"""A slice of the zoo at small images: everything that `make zoo` asks, in a few minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo_models import Entry, build, entries
from zoo_trial import trial

HERE = Path(__file__).parent


def golden() -> list[tuple[Entry, float]]:
    """The lines of slice.txt: a model, its input, the percentage of its parameters that goes."""
    lines = (HERE / "slice.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [(Entry(*row[:3]), float(row[3])) for row in rows]


@pytest.mark.first
@pytest.mark.parametrize(("entry", "removed"), golden(), ids=[entry.key for entry, _ in golden()])
def test_a_model_of_the_zoo_passes_everything(entry, removed):
    """Proved, trained, pruned again, composed, exported; the share removed is the golden one.

    A share that is half a point off is a change of what is pinned: a regression, or a better rule.
    """
    record = trial(build(entry))

    assert record.failures == {}
    assert record.unknown == []
    assert 100 * record.removed == pytest.approx(removed, abs=0.5)


def test_every_model_of_a_few_layers_is_in_the_slice():
    """The zoo's small configurations are as small as they get: none is left out."""
    small = {entry.key for entry in entries() if entry.library in ("transformers", "diffusers")}

    assert small <= {entry.key for entry, _ in golden()}
