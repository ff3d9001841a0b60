"""The paper's comparison of methods: its record, JSON, and the table in Markdown and on a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget, EngineReport, MethodComparison, MethodFigures, ModelFigures
from hqp_lightning.report.assemble import BACKEND_PREFERENCE, worsening
from hqp_lightning.report.installed import versions
from hqp_lightning.report.rows import conditions
from hqp_lightning.report.schema import SCHEMA_VERSION, decode, encode
from hqp_lightning.report.units import ABSENT, change, count, factor, fraction, latency, size

__all__ = ["compare_methods", "methods_table", "print_methods", "read_methods", "write_methods"]

_HEADERS = ("drop", "held-out", "held-out drop", "MACs", "ONNX size", "size", "ms: median (p95)", "speedup")


def compare_methods(
    budget: Budget,
    figures: Mapping[str, ModelFigures],
    engines: Sequence[EngineReport],
    engine_of: Mapping[str, tuple[str, str]],
    notes: Sequence[str] = (),
    reference: float | None = None,
) -> MethodComparison:
    """Put the methods of a comparison side by side, with the figures that follow from the first one.

    Args:
        budget: what HQP was held to.
        figures: method to its figures; the first is the dense float model, which the others are compared with.
        engines: every timed engine.
        engine_of: method to ``(model, precision)`` of its engine; the dense model's must be there if any was timed.
        notes: what a reader must know, one sentence each.
        reference: the score that drops are measured from, if it is not the dense model's.
    """
    dense, mode = next(iter(figures)), budget.mode
    base, held = figures[dense], figures[dense].holdout_accuracy
    held_to = base.accuracy if reference is None else reference
    backend = min({e.backend for e in engines}, key=_preference, default=None)
    times = {(e.model, e.precision): e.latency_ms for e in engines if e.backend == backend}

    def row(method: str, f: ModelFigures) -> MethodFigures:
        time = times.get(engine_of.get(method, ("", "")))
        return MethodFigures(
            method=method,
            figures=f,
            accuracy_drop=worsening(held_to, f.accuracy, mode),
            size_reduction=1 - f.file_bytes / base.file_bytes,
            holdout_accuracy_drop=(
                None if held is None or f.holdout_accuracy is None else worsening(held, f.holdout_accuracy, mode)
            ),
            latency_ms=time,
            speedup=times[engine_of[dense]].median / time.median if time else None,
        )

    rows = tuple(row(method, f) for method, f in figures.items())
    return MethodComparison(budget, rows, tuple(engines), tuple(notes), versions())


def write_methods(comparison: MethodComparison, folder: Path) -> tuple[Path, Path]:
    """Write ``comparison.json`` and ``comparison.md``; returns their paths."""
    data, table = folder / "comparison.json", folder / "comparison.md"
    plain = encode(comparison, MethodComparison, "comparison")
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    data.write_text(text + "\n", encoding="utf-8")
    table.write_text(methods_table(comparison), encoding="utf-8")
    return data, table


def read_methods(path: str | PathLike[str]) -> MethodComparison:
    """Read ``comparison.json``.

    Raises:
        ConfigurationError: the file is another version's, or holds something else.
    """
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise ConfigurationError(f"{path} is no comparison.json of schema_version {SCHEMA_VERSION}")
    found: MethodComparison = decode(data, MethodComparison, "comparison")
    return found


def methods_table(comparison: MethodComparison) -> str:
    """The table in Markdown (GitHub flavoured), with lines below that say what it means."""
    headers = ["method", comparison.budget.monitor, *_HEADERS]
    lines = [headers, [":--"] + ["--:"] * (len(headers) - 1), *_rows(comparison)]
    table = "\n".join(f"| {' | '.join(' '.join(c.replace('|', '/').split()) for c in cells)} |" for cells in lines)
    return table + "\n\n" + "\n".join(_words(comparison)) + "\n"


def print_methods(comparison: MethodComparison, console: Console | None = None) -> None:
    """Print the table and what it means."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    names = ("", comparison.budget.monitor, "drop", "held\nout", None, "MACs", None, "size", "ms (p95)", "speedup")
    shown = [i for i, name in enumerate(names) if name is not None]  # what 80 columns have room for
    for i in shown:
        table.add_column(Text(names[i] or ""), justify="right" if i else "left", overflow="fold", vertical="bottom")
    for cells in _rows(comparison):
        table.add_row(*(Text(cells[i]) for i in shown))
    console.print()
    console.print(table)
    for words in _words(comparison):
        console.print(Text(words), soft_wrap=True)


def _rows(comparison: MethodComparison) -> list[list[str]]:
    rows = []
    for i, m in enumerate(comparison.methods):
        f = m.figures
        against = [fraction(m.accuracy_drop), fraction(m.holdout_accuracy_drop), change(m.size_reduction)]
        drop, held_drop, reduced = against if i else [ABSENT] * 3  # the first is what the others are compared with
        scores = [fraction(f.accuracy), drop, fraction(f.holdout_accuracy), held_drop]
        costs = [count(f.macs), size(f.file_bytes), reduced, latency(m.latency_ms), factor(m.speedup)]
        rows.append([m.method, *scores, *costs])
    return rows


def _words(comparison: MethodComparison) -> list[str]:
    budget, last = comparison.budget, comparison.methods[-1]
    alone = any(m.method == "channels only" for m in comparison.methods)
    state = "within" if last.accuracy_drop <= budget.max_drop + 1e-9 else "OVER"
    words = [
        f"{last.method} is {state} its budget: drop {fraction(last.accuracy_drop)} of {fraction(budget.max_drop)}. "
        f"{'Channels only has the same; the' if alone else 'The'} other methods have none."
    ]
    backend = min({e.backend for e in comparison.engines}, key=_preference, default=None)
    timed = next((e for e in comparison.engines if e.backend == backend), None)
    words += [f"Latency of one call, all models in turn: {conditions(timed)}."] if timed else ["Nothing was timed."]
    return words + list(comparison.notes)


def _preference(backend: str) -> int:
    known = list(BACKEND_PREFERENCE)
    return known.index(backend) if backend in known else len(known)
