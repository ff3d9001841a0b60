"""The report as a Markdown table, for the page that publishes a result."""

from __future__ import annotations

from hqp_lightning.records import Report
from hqp_lightning.report.assemble import speed_pair
from hqp_lightning.report.rows import ModelRow, conditions, model_rows
from hqp_lightning.report.sentences import unit_counts
from hqp_lightning.report.units import count, factor, fraction, latency, size

__all__ = ["markdown_table"]


def _escape(text: str) -> str:
    """Keep a cell a cell, and text text."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def _cells(row: ModelRow, held: bool, control: bool) -> list[str]:
    f = row.figures
    cells = [row.name, fraction(f.accuracy), fraction(row.drop)]
    cells += [fraction(f.holdout_accuracy), fraction(row.holdout_drop)] if held else []
    cells += [fraction(row.control_drop)] if control else []
    cells += [fraction(row.control_holdout_drop)] if control and held else []
    return [*cells, count(f.macs), count(f.params), size(f.file_bytes), latency(row.latency_ms), factor(row.speedup)]


def markdown_table(report: Report) -> str:
    """The rows dense, control, pruned and INT8, with a line below that says what they mean.

    Scores and drops are fractions in the metric's own unit, a drop is positive when worse; MB are 10^6 bytes.
    Columns for held-out data and for the control appear where the run had them.

    Args:
        report: what to publish.

    Returns:
        Markdown (GitHub flavoured) that ends with a line break.
    """
    rows = model_rows(report)
    held = any(r.figures.holdout_accuracy is not None for r in rows)
    control = report.control is not None
    headers = ["model", _escape(report.budget.monitor), "drop"]
    headers += ["held-out", "held-out drop"] if held else []
    headers += ["drop vs control"] if control else []
    headers += ["held-out drop vs control"] if control and held else []
    headers += ["MACs", "params", "ONNX size", "latency, ms: median (p95)", "speedup"]
    lines = [headers, [":--"] + ["--:"] * (len(headers) - 1), *(_cells(r, held, control) for r in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    state = "within" if report.within_budget else "**over**"
    words = [
        f"INT8 is {state} budget: drop {fraction(report.accuracy_drop)} of {fraction(report.budget.max_drop)} allowed.",
        f"Scores are {_escape(report.budget.monitor)}, as a fraction"
        + (" (smaller is better)" if report.budget.mode == "min" else "")
        + "; a drop is against dense unless said otherwise.",
    ]
    words += ["Held-out data was seen by no decision."] if held else []
    words += ["Control is the dense model trained for the same epochs."] if control else []
    words += [f"{_escape(unit_counts(report.units_removed))} removed as a whole."] if report.units_removed else []
    pair = speed_pair(report.engines)
    words += [f"Latency of one call: {_escape(conditions(pair[1]))}."] if pair else ["No backend timed dense and INT8."]
    return f"{table}\n\n{' '.join(words)}\n"
