"""report.json: the published schema, the overall outcome, figures in words."""

from __future__ import annotations

import json

import jsonschema
import pytest
from pydantic import ValidationError
from report_example import report, verdict

from edgeprune.gates.verdict import Verdict
from edgeprune.release import wording
from edgeprune.release.html import html
from edgeprune.release.report import (
    Figures,
    Report,
    Speedup,
    VerdictRow,
    published_schema,
    schema_text,
)

# DESIGN's contract, written out: what scripts may rely on.
CONTRACT = {
    "schema": 1,
    "dense": {
        "accuracy": 0.91,
        "params": 0,
        "macs": 0,
        "size_bytes": 0,
        "latency_ms": {"p50": 0.0},
    },
    "pruned": {
        "accuracy": 0.9,
        "params": 0,
        "macs": 0,
        "size_bytes": 0,
        "latency_ms": {"p50": 0.0},
    },
    "speedup": {"ratio": 2.6, "low": 2.5, "high": 2.7, "pairs": 20},
    "rounds": [
        {
            "round": 1,
            "criterion": "l1",
            "keep_fraction": 0.8,
            "accuracy": {"removed": 0.3, "repaired": 0.89, "recovered": 0.9},
            "proof": {"error": 1e-6, "change": 0.4},
            "accepted": True,
            "seconds": 12.0,
        }
    ],
    "groups": [{"name": "a.weight", "kind": "channel", "before": 8, "after": 4}],
    "pins": [{"unit": "u", "reason": "r", "where": "file:line"}],
    "verdicts": [
        {
            "gate": "latency",
            "outcome": "pass",
            "observed": 0.1,
            "limit": 0.2,
            "unit": "ms",
            "interval": [0.09, 0.11],
            "why": "...",
        }
    ],
    "environment": {},
}


def covers(written: object, expected: object) -> bool:
    """Whether everything in `expected` stands in `written`, which may say more."""
    if isinstance(expected, dict):
        return isinstance(written, dict) and all(
            key in written and covers(written[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return len(written) == len(expected) and all(map(covers, written, expected))
    return written == expected


def test_the_published_schema_is_current():
    """report.schema.json is what the models say.

    If not: python -c "from edgeprune.release.report import schema_text as s; print(s(), end='')".
    """
    assert published_schema() == schema_text()


def test_the_designs_example_is_a_valid_report():
    """The documented example passes an independent validator, and reads back unchanged."""
    schema = json.loads(published_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(CONTRACT, schema)
    written = json.loads(Report.model_validate(CONTRACT).to_json())

    assert covers(written, CONTRACT)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"unknown": 1},
        {"dense": {"params": -1, "macs": 0}},
        {"speedup": {"ratio": 0, "low": 1, "high": 1, "pairs": 1}},
        {"verdicts": [{"gate": "g", "outcome": "maybe", "limit": 1}]},
    ],
)
def test_schema_and_models_refuse_alike(change):
    """What the models refuse, the published schema refuses."""
    broken = CONTRACT | change
    with pytest.raises(ValidationError):
        Report.model_validate(broken)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, json.loads(published_schema()))


def test_a_report_survives_its_json():
    """Writing and reading gives an equal report, and the JSON validates."""
    full = report(verdict("latency"), verdict("size", "inconclusive"))
    jsonschema.validate(json.loads(full.to_json()), json.loads(published_schema()))

    assert Report.model_validate_json(full.to_json()) == full


@pytest.mark.parametrize(
    ("outcomes", "outcome", "code"),
    [
        (["pass", "pass"], "pass", 0),
        (["pass", "inconclusive"], "inconclusive", 3),
        (["inconclusive", "fail", "pass"], "fail", 1),
        ([], "inconclusive", 3),
    ],
)
def test_the_worst_verdict_decides(outcomes, outcome, code):
    """fail beats inconclusive beats pass; no verdict is no pass."""
    made = report(*(verdict(f"g{i}", o) for i, o in enumerate(outcomes)))

    assert made.outcome == outcome
    assert made.exit_code == code


def test_nothing_delivered_is_said():
    """A report of a failed proof passes nowhere and claims no achievement."""
    failed = report(verdict("proof", "fail")).model_copy(update={"pruned": None})

    assert failed.outcome == "fail"
    assert wording.headline(failed) == "nothing is delivered"
    assert wording.proof_sentences(failed) == (
        "A proof failed, so nothing is delivered: why of proof",
    )


def test_a_gates_verdict_becomes_a_row():
    """Every field of a verdict arrives, and its line reads the same."""
    found = Verdict(
        gate="latency",
        outcome="fail",
        observed=9.4,
        limit=8.0,
        unit="ms",
        interval=(9.2, 9.7),
        count=20,
        why="median",
    )
    row = VerdictRow.of(found)

    assert row.line() == found.line()
    assert (row.interval, row.count, row.outcome) == ((9.2, 9.7), 20, "fail")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.count(1234567), "1,234,567"),
        (wording.percent(0.9123), "91.23 %"),
        (wording.milliseconds(0.12345), "0.123 ms"),
        (wording.size(921_600), "900 KiB"),
        (wording.size(12 * 1024 * 1024), "12.0 MiB"),
        (wording.figure(3.1e-7, 2), "3.1e-07"),
        (wording.figure(0.0), "0"),
        (wording.figure(123456.0), "123,456"),
        (wording.change(200, 50), "-75 %"),
        (wording.change(200, 200), "0 %"),
        (wording.change(0, 5), ""),
        (wording.points(0.91, 0.9), "-1.00 points"),
        (wording.quantity(0.0061, "fraction"), "0.61 %"),
        (wording.quantity(2.61, "x"), "2.61x"),
        (wording.quantity(9.4, "ms"), "9.4 ms"),
        (wording.span((0.002, 0.01), "fraction"), "[0.20 %, 1.00 %]"),
        (wording.percent(None), "-"),
    ],
)
def test_figures_in_words(said, expected):
    """Each figure is worded as documented."""
    assert said == expected


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["pass"], "The one gate is met."),
        (["pass", "pass"], "All 2 gates are met."),
        (["fail", "pass", "fail"], "The gates g0 and g2 are not met."),
        (["inconclusive"], "The gate g0 is undecided: the evidence is not enough."),
        ([], "No gate was judged."),
    ],
)
def test_the_sentence_names_the_deciding_gates(outcomes, expected):
    """The verdict's sentence names the gates that decided it."""
    made = report(*(verdict(f"g{i}", o) for i, o in enumerate(outcomes)))

    assert wording.sentence_of_outcome(made) == expected


def test_the_headline_counts_only_what_was_measured():
    """Speed and accuracy are left out of the headline where they are unknown."""
    bare = Report(dense=Figures(params=100, macs=50), pruned=Figures(params=40, macs=25))

    assert wording.headline(bare) == "parameters -60 %, multiply-accumulates -50 %"
    assert wording.headline(report()).startswith("2.61 times faster [2.5, 2.7], accuracy -0.61")


def test_a_slower_build_is_not_called_faster():
    """A ratio below 1 is read as 'times as fast', in the headline and on the page."""
    slow = Speedup(ratio=0.977, low=0.928, high=1.03, pairs=20)
    slower = report(verdict("speedup", "fail")).model_copy(update={"speedup": slow})

    assert wording.headline(slower).startswith("0.977 times as fast [0.928, 1.03]")
    assert "0.977× as fast" in html(slower)


def test_the_proof_is_told_by_its_numbers():
    """The worst error, the least change and control, and a weak proof are all said."""
    full = report()
    rounds = list(full.rounds)
    weak = rounds[1].proof.model_copy(update={"weak": True, "control": 0.003, "change": 0.07})
    rounds[1] = rounds[1].model_copy(update={"proof": weak})
    said = " ".join(wording.proof_sentences(full.model_copy(update={"rounds": tuple(rounds)})))

    for part in ("3 rounds", "3.0e-07", "0.07 or more", "0.003 or more", "is weak"):
        assert part in said
    assert "weak" not in " ".join(wording.proof_sentences(full))
