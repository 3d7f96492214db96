"""Every format of the report: a shared contract, then each one's own law."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_example import HOSTILE, one_round, report, verdict

from edgeprune.errors import EdgepruneError
from edgeprune.release.chart import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    accuracy_chart,
    nice_ticks,
    tradeoff_chart,
)
from edgeprune.release.formats import report_format, report_formats
from edgeprune.release.html import html, pin_reasons
from edgeprune.release.junit import junit
from edgeprune.release.report import Figures, FinalTraining, Report, RoundRepair
from edgeprune.release.summary import summary

VOID = {"meta", "link", "br", "line", "circle", "rect", "path", "polyline"}

REPORTS = {
    "complete": report(verdict("latency"), verdict("accuracy", "fail")),
    "hostile": report(verdict(HOSTILE), text=HOSTILE),
    "control characters": report(verdict("a\x00b"), text="bell\x07 \ud800 end"),
    "bare": Report(dense=Figures(params=1, macs=1), pruned=None),
    "failed": report(verdict("proof", "fail")).model_copy(update={"pruned": None}),
}


class Page(HTMLParser):
    """What a browser would find: elements, attributes, text; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.text += data


def test_the_formats_are_the_documented_ones():
    """The files of a bundle's report, by format."""
    files = {known.name: known.file for known in report_formats()}

    assert files == {
        "html": "report.html",
        "json": "report.json",
        "junit": "junit.xml",
        "summary": "summary.md",
    }


@pytest.mark.parametrize("known", report_formats(), ids=lambda known: known.name)
@pytest.mark.parametrize("name", [name for name in REPORTS if name != "control characters"])
def test_every_format_renders_every_report(known, name):
    """A format turns any report into text that ends in a newline and can be written as UTF-8."""
    text = known.render(REPORTS[name])

    assert text.endswith("\n")
    assert text.encode("utf-8")


def test_a_taken_name_is_refused():
    """Two formats cannot have one name."""
    with pytest.raises(EdgepruneError, match="junit"):
        report_format("junit", file="other.xml")(lambda report: "")


def test_junit_counts_what_it_holds():
    """Tests, failures and errors in the header are those in the body; inconclusive is an error."""
    outcomes = ["pass", "fail", "inconclusive", "pass"]
    root = ElementTree.fromstring(
        junit(report(*(verdict(f"g{i}", outcome) for i, outcome in enumerate(outcomes))))
    )
    suite = root.find("testsuite")

    assert [case.get("name") for case in suite.iter("testcase")] == ["g0", "g1", "g2", "g3"]
    assert suite.attrib == root.attrib
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "1")
    assert suite.find("testcase[@name='g1']/failure").text == "why of g1"
    assert suite.find("testcase[@name='g2']/error").get("type") == "inconclusive"


def test_junit_without_a_verdict_is_not_green():
    """A report with no verdict holds one error."""
    root = ElementTree.fromstring(junit(REPORTS["bare"]))

    assert root.get("tests") == "1"
    assert root.get("errors") == "1"
    assert root.find(".//error").get("message")


@pytest.mark.parametrize("name", ["hostile", "control characters"])
def test_junit_is_xml_whatever_the_text(name):
    """Markup and characters that XML cannot hold do not break the document."""
    root = ElementTree.fromstring(junit(REPORTS[name]).encode())

    assert len(list(root.iter("testcase"))) == 1


def test_the_page_loads_nothing():
    """No script, no address of any kind, no import: the page is whole by itself."""
    text = html(REPORTS["complete"])
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    references = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset")
    ]

    assert tags.isdisjoint({"script", "iframe", "img", "object", "embed", "form"})
    assert references == ["data:,"]
    assert not re.search(r"url\(|@import|https?:", text)


def test_the_page_is_accessible():
    """It has a language, a title, labelled charts, headed tables, and every section a heading."""
    page = Page(html(REPORTS["complete"]))
    ids = {attributes.get("id") for _, attributes in page.tags}
    by_tag = {}
    for tag, attributes in page.tags:
        by_tag.setdefault(tag, []).append(attributes)

    assert page.stack == []
    assert by_tag["html"][0]["lang"] == "en"
    assert "title" in by_tag
    assert all(section["aria-labelledby"] in ids for section in by_tag["section"])
    charts = [svg for svg in by_tag["svg"] if svg["viewbox"] == "0 0 360 220"]
    assert len(charts) == 2
    assert all(svg["role"] == "img" and "round 2" in svg["aria-label"] for svg in charts)
    assert all(cell["scope"] in ("col", "row") for cell in by_tag["th"])


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [(["pass"], "Passed"), (["fail"], "Failed"), (["inconclusive"], "Inconclusive")],
)
def test_the_verdict_comes_first(outcomes, word):
    """The first heading is the verdict, the banner has its class, and no other verdict is there."""
    page = Page(html(report(*(verdict("g", outcome) for outcome in outcomes))))
    banner = next(attributes for tag, attributes in page.tags if tag == "header")

    assert page.text.split("Round by round")[0].count(word) == 2  # the title and the heading
    assert banner["class"] == f"banner {outcomes[0]}"


@pytest.mark.parametrize("render", [html, summary])
def test_the_users_text_is_not_markup(render):
    """A model's name with markup in it is shown, not obeyed."""
    text = render(REPORTS["hostile"])

    assert "<script>" not in text
    assert "alert" in text


def test_the_page_shows_the_figures():
    """Key figures, widths, pins and their lines, and the proof stand on the page."""
    text = Page(html(REPORTS["complete"])).text

    for shown in ("2.61×", "91.83 %", "91.22 %", "64 → 32", "model.py:8", "3.0e-07", "0.61 %"):
        assert shown in text


def test_the_summary_is_tables_that_keep_their_columns():
    """Every row of a Markdown table has as many cells as its head, whatever the text."""
    text = summary(report(verdict("a|b"), text="pipe | and\nnewline"))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]

    assert text.startswith("## ✅ edgeprune: Passed\n")
    assert len(tables) == 3
    for lines in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_pins_are_gathered_by_reason():
    """Two units of one reason are one entry with both lines."""
    (reason,) = pin_reasons(report().pins)

    assert (reason.count, reason.where) == (2, ("model.py:8", "model.py:9"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (0.885, 0.913, (0.88, 0.89, 0.9, 0.91, 0.92)),
        (0.31, 0.92, (0.2, 0.4, 0.6, 0.8, 1.0)),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    """Ticks are multiples of 1, 2 or 5 times a power of ten that enclose the range."""
    assert nice_ticks(low, high) == expected


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 123.0])
def test_one_value_still_has_two_ticks(value):
    """A range of no width gets an axis that can be drawn."""
    ticks = nice_ticks(value, value)

    assert len(ticks) >= 2
    assert ticks[0] <= value <= ticks[-1]


@pytest.mark.parametrize("chart", [accuracy_chart, tradeoff_chart])
def test_marks_lie_inside_and_in_order(chart):
    """Every mark is inside the frame, and a higher accuracy is drawn higher."""
    drawn = chart(report())
    dense = next(mark for mark in drawn.marks if mark.style == "dense")
    rejected = next(mark for mark in drawn.marks if mark.style == "rejected")

    assert all(LEFT <= m.x <= RIGHT and TOP <= m.y <= BOTTOM for m in drawn.marks)
    assert dense.y < rejected.y


@pytest.mark.parametrize(("accepted", "style"), [(True, "recovered"), (False, "rejected")])
def test_the_final_training_is_shown(accepted, style):
    """The last step of a run is in both charts, in the page's table and in the summary."""
    final = FinalTraining(accuracy=0.93, accepted=accepted)
    full = report(verdict("accuracy")).model_copy(update={"final": final})

    for chart in (accuracy_chart(full), tradeoff_chart(full)):
        (mark,) = [mark for mark in chart.marks if mark.text.startswith("final training: 93.00")]
        assert mark.style == style
        assert mark.y == min(other.y for other in chart.marks)
    rounds = html(full).partition(">Round by round</h2>")[2].partition("</section>")[0]
    assert "final training</th>" in rounds
    assert f"| final training |  |  | 93.00 % |  | {'yes' if accepted else 'no'} |" in summary(full)


@pytest.mark.parametrize("kept", [True, False])
def test_what_repair_did_stands_below_the_rounds(kept):
    """Layers, inputs and the outputs' error before and after; why, where it was undone."""
    repair = RoundRepair(
        layers=6,
        refitted=5,
        samples=256,
        error_before=0.27,
        error_after=0.0125,
        kept=kept,
        why="" if kept else "the whole was no better",
    )
    first = one_round(1).model_copy(update={"repair": repair})
    text = html(report(verdict("accuracy")).model_copy(update={"rounds": (first,)}))

    assert "Repair of round 1: 5 of 6 layers refitted on 256 inputs" in text
    assert "0.27 → 0.013 of their variance" in text
    assert ("undone: the whole was no better" in text) is not kept


def test_the_tradeoff_takes_the_best_cost_that_was_measured():
    """Latency if a round has it, else multiply-accumulates, else the share of units kept."""
    full = report()
    without_macs = tuple(row.model_copy(update={"macs": None}) for row in full.rounds)
    timed = tuple(row.model_copy(update={"latency_ms": 0.3}) for row in full.rounds)

    assert "multiply" in tradeoff_chart(full).x_title
    assert "units" in tradeoff_chart(full.model_copy(update={"rounds": without_macs})).x_title
    assert "latency" in tradeoff_chart(full.model_copy(update={"rounds": timed})).x_title


def test_no_chart_without_accuracies():
    """Rounds without labels have nothing to draw."""
    blank = report().rounds[0].accuracy.model_copy(update={"removed": None, "recovered": None})
    rounds = tuple(row.model_copy(update={"accuracy": blank}) for row in report().rounds)
    bare = report().model_copy(update={"rounds": rounds})

    assert accuracy_chart(bare) is None
    assert tradeoff_chart(bare) is None
