"""The report as JSON."""

from __future__ import annotations

from edgeprune.release.formats import report_format
from edgeprune.release.report import Report


@report_format("json", file="report.json")
def document(report: Report) -> str:
    """The report as its published schema describes it."""
    return report.to_json()
