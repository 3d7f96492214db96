"""The verdicts as JUnit XML, for pipelines that read nothing else.

One test case a gate. A failed gate is a `<failure>`. An inconclusive one is an `<error>`, JUnit's
word for "could not be judged": `<skipped>` is shown green by most readers, and a gate without
evidence must never be taken for one that passed. A run that judged no gate is an error of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from edgeprune.release.formats import report_format
from edgeprune.release.report import Report, VerdictRow
from edgeprune.release.wording import headline, sentence_of_outcome

# What XML 1.0 cannot hold, even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@report_format("junit", file="junit.xml")
def junit(report: Report) -> str:
    """A `testsuites` document with one suite, `edgeprune`."""
    about = {key: str(value) for key, value in report.environment.items()}
    about["result"] = headline(report)
    return verdicts_as_junit(report.verdicts, about, sentence_of_outcome(report))


def verdicts_as_junit(
    verdicts: Sequence[VerdictRow], about: Mapping[str, str], said: str = "No gate was judged."
) -> str:
    """The same for verdicts without a report; `about` becomes properties.

    said: the error of a suite without a verdict.
    """
    outcomes = [verdict.outcome for verdict in verdicts]
    without_gates = not outcomes
    counts = {
        "name": "edgeprune",
        "tests": str(len(outcomes) + without_gates),
        "failures": str(outcomes.count("fail")),
        "errors": str(outcomes.count("inconclusive") + without_gates),
        "skipped": "0",
    }
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", counts)
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in about.items():
        ElementTree.SubElement(properties, "property", name=_clean(key), value=_clean(value))
    for verdict in verdicts:
        _add_case(suite, verdict)
    if without_gates:
        case = ElementTree.SubElement(suite, "testcase", classname="edgeprune", name="run")
        ElementTree.SubElement(case, "error", type="inconclusive", message=_clean(said))
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _add_case(suite: ElementTree.Element, verdict: VerdictRow) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname="edgeprune.gates", name=_clean(verdict.gate)
    )
    line = _clean(verdict.line())
    if verdict.outcome == "pass":
        ElementTree.SubElement(case, "system-out").text = line
        return
    tag = "failure" if verdict.outcome == "fail" else "error"
    fault = ElementTree.SubElement(case, tag, type=verdict.outcome, message=line)
    fault.text = _clean(verdict.why)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
