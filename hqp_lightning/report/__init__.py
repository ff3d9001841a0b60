"""Reports of a run: JSON, console table, Markdown table, HTML page."""

from hqp_lightning.report.assemble import assemble
from hqp_lightning.report.console import print_report
from hqp_lightning.report.failure import read_failure, write_failure
from hqp_lightning.report.html import write_html
from hqp_lightning.report.installed import versions
from hqp_lightning.report.markdown import markdown_table
from hqp_lightning.report.methods import compare_methods, methods_table, print_methods, read_methods, write_methods
from hqp_lightning.report.publish import publish
from hqp_lightning.report.schema import from_dict, read_json, to_dict, write_json
from hqp_lightning.report.sentences import step_line

__all__ = [
    "assemble",
    "compare_methods",
    "from_dict",
    "markdown_table",
    "methods_table",
    "print_methods",
    "print_report",
    "publish",
    "read_failure",
    "read_json",
    "read_methods",
    "step_line",
    "to_dict",
    "versions",
    "write_failure",
    "write_html",
    "write_json",
    "write_methods",
]
