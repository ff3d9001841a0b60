"""The report on a terminal: as a table that fits 80 columns and reads the same in a plain log."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hqp_lightning.records import Report
from hqp_lightning.report.assemble import speed_pair
from hqp_lightning.report.compiled import advice, compiler_line
from hqp_lightning.report.gone import unit_line
from hqp_lightning.report.predicted import predicted_line
from hqp_lightning.report.rows import conditions, model_rows
from hqp_lightning.report.sentences import (
    fastest,
    group_lines,
    key_figures,
    other_drops,
    steps_summary,
    verdict,
)
from hqp_lightning.report.units import ABSENT, count, fraction, latency, ms, node, size

__all__ = ["columns", "print_report"]


def columns(*headers: str, left: int = 1) -> Table:
    """A table without frames; ``left`` columns are aligned to the left."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for i, header in enumerate(headers):
        # Text, not str: a metric called "acc[val]" is no markup
        table.add_column(Text(header), justify="left" if i < left else "right", overflow="fold", vertical="bottom")
    return table


def _models(report: Report) -> Table:
    rows = model_rows(report)
    held = any(r.figures.holdout_accuracy is not None for r in rows)
    held_out = ("held\nout", "drop") if held else ()
    table = columns("", report.budget.monitor, "drop", *held_out, "MACs", "params", "ONNX", "ms (p95)")
    for r in rows:
        f = r.figures
        scores = [fraction(f.accuracy), fraction(r.drop)]
        scores += [fraction(f.holdout_accuracy), fraction(r.holdout_drop)] if held else []
        cells = [r.name, *scores, count(f.macs), count(f.params), size(f.file_bytes), latency(r.latency_ms)]
        table.add_row(*cells, style="bold" if r.name == "INT8" else "")
    return table


def _engines(report: Report) -> Table:
    times = ("batch", "threads", "ms", "p95", "images/s")
    table = columns("backend", "model", "precision", *times, report.budget.monitor, left=3)
    for e in report.engines:
        threads = str(e.threads) if e.threads > 0 else "-"
        rate = ABSENT if e.images_per_s is None else count(e.images_per_s)
        time = (ms(e.latency_ms.median), ms(e.latency_ms.p95), rate)
        cells = (e.backend, e.model, e.precision, str(e.batch_size), threads, *time, fraction(e.accuracy))
        table.add_row(*map(Text, cells))
    return table


def _devices(report: Report) -> dict[str, list[str]]:
    """Device to the backends timed on it; a device's name is too long for a column."""
    devices: dict[str, dict[str, None]] = {}
    for e in report.engines:
        devices.setdefault(e.device, {})[e.backend] = None
    return {device: list(backends) for device, backends in devices.items()}


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the figures of a run: the models, the verdict, every engine, the notes.

    Args:
        report: what to print.
        console: where to; by default standard output, without colours where that is no terminal.
    """
    console = console or Console()

    def line(text: str, style: str = "") -> None:
        console.print(Text(text), style=style, soft_wrap=not console.is_terminal)  # a log keeps sentences on one line

    console.print()
    console.print(_models(report))
    console.print()
    line(verdict(report), style="bold green" if report.within_budget else "bold red")
    for sentence in other_drops(report):
        line(sentence)
    line(", ".join(f"{name} {figure} ({behind})" for name, figure, behind in key_figures(report)))
    line(steps_summary(report))
    pair = speed_pair(report.engines)
    if pair:
        line(f"latencies and speedup above: {conditions(pair[1])}")
    if report.engines:
        console.print()
        console.print(_engines(report))
        for device, backends in _devices(report).items():
            line(f"{', '.join(backends)} on {device}")
        if text := fastest(report):
            line(text, style="bold")
    said = unit_line(report), predicted_line(report), compiler_line(report), advice(report)
    for text in filter(None, (*said, *group_lines(report))):
        line(text)
    for tensor in (t for t in report.tensors if t.fault):
        line(f"at fault: {node(tensor.layer)}: {tensor.fault}", style="bold red")
    for note in report.notes:
        line(f"note: {note}")
    console.print()
