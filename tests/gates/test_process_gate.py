"""The process gate on scripted processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeprune.gates import judge
from edgeprune.gates.process import ProcessEvidence


def test_a_process_is_judged_by_the_interval_of_its_mean(make_pairs) -> None:
    """Loads of 2 and 8 ms: 4 ms by the geometric mean, whose wide interval holds a limit of 5."""
    pairs = make_pairs([1.0, 1.0], [1.0, 1.0])
    seen = tuple(replace(s, load_ms=ms) for s, ms in zip(pairs.candidate, (2.0, 8.0), strict=True))

    (verdict,) = judge(ProcessEvidence(processes=seen, confidence=0.95, load_ms=5.0))

    assert verdict.observed == pytest.approx(4.0)
    assert verdict.outcome == "inconclusive"
    assert "measure more pairs" in verdict.why


def test_what_a_tool_does_not_tell_is_not_judged(make_pairs) -> None:
    """A figure of 0 stands for one that was not recorded: inconclusive, and how to record it."""
    seen = make_pairs([1.0, 1.0], [1.0, 1.0]).candidate

    unknown = ProcessEvidence(
        processes=tuple(replace(s, first_ms=0.0) for s in seen), confidence=0.95, first_ms=5.0
    )

    (verdict,) = judge(unknown)
    assert (verdict.outcome, verdict.observed) == ("inconclusive", None)
    assert "bench --save" in verdict.why
