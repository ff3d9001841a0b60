"""A report in all its forms: the files of a folder, and the console."""

from __future__ import annotations

import logging
from pathlib import Path

from hqp_lightning.records import Report
from hqp_lightning.report.console import print_report
from hqp_lightning.report.html import write_html
from hqp_lightning.report.schema import write_json

__all__ = ["publish"]

_log = logging.getLogger(__name__)


def publish(report: Report, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into a folder, print the table, and log where it is over budget."""
    write_json(report, folder / "report.json")
    write_html(report, folder / "report.html")
    print_report(report)
    if not report.within_budget:
        _log.error("hqp: no INT8 artifact is within the budget; see the notes in %s", folder / "report.json")
