"""The score against the latency over several runs: which of them no other beats in both."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hqp_lightning.records import Report
from hqp_lightning.report.assemble import speed_pair
from hqp_lightning.report.rows import conditions
from hqp_lightning.report.units import ABSENT, count, factor, fraction, ms, size
from hqp_lightning.sweeps.runs import SweepRun, varied

__all__ = ["COLUMNS", "Point", "front", "objectives", "points", "print_runs", "write_csv", "write_png"]

COLUMNS = (
    *("run", "overrides", "pareto", "within_budget", "max_drop", "accuracy", "accuracy_drop", "holdout_accuracy"),
    *("macs", "params", "file_bytes", "latency_ms", "speedup", "engine", "reason"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """A run's INT8 artifact: the score on the decision split, and the median latency or, where none was timed, MACs."""

    accuracy: float
    cost: float


def points(reports: Sequence[Report]) -> tuple[list[Point], str]:
    """What the runs are compared by.

    Returns:
        One point for each report, and the name of the cost: ``"latency_ms"`` if every run was timed, else ``"macs"``.
    """
    timed = [speed_pair(r.engines) for r in reports]
    if all(timed):
        return [Point(r.int8.accuracy, p[1].latency_ms.median) for r, p in zip(reports, timed, strict=True) if p], (
            "latency_ms"
        )
    return [Point(r.int8.accuracy, r.int8.macs) for r in reports], "macs"


def objectives(report: Report) -> tuple[float, float]:
    """What a sweeper optimizes: the INT8 score, and latency (ms) or, where none was timed, MACs."""
    (point,), _ = points([report])
    return point.accuracy, point.cost


def front(found: Sequence[Point], mode: str = "max") -> list[bool]:
    """Tell for each point whether no other is at least as good in both score and cost and better in one.

    Args:
        found: the points.
        mode: ``"max"`` if a larger score is better, else ``"min"``; a smaller cost always is.

    Examples:
        >>> front([Point(0.9, 2.0), Point(0.8, 1.0), Point(0.8, 3.0), Point(0.9, 2.0)])
        [True, True, False, True]
    """
    sign = 1.0 if mode == "max" else -1.0

    def beats(a: Point, b: Point) -> bool:
        gain = sign * (a.accuracy - b.accuracy)
        return gain >= 0 and a.cost <= b.cost and (gain > 0 or a.cost < b.cost)

    return [not any(beats(other, point) for other in found) for point in found]


def _metric(runs: Sequence[SweepRun]) -> str:
    """What the scores are, as the runs call it."""
    return ", ".join(dict.fromkeys(r.report.budget.monitor for r in runs if r.report is not None)) or "score"


def rows(runs: Sequence[SweepRun]) -> list[dict[str, object]]:
    """One row for each run in the order of `COLUMNS`; figures of a run that has no report are None."""
    reports = [r.report for r in runs if r.report is not None]
    best = iter(front(points(reports)[0], reports[0].budget.mode) if reports else [])
    table = []
    for run, changes in zip(runs, varied(runs), strict=True):
        row: dict[str, object] = dict.fromkeys(COLUMNS)
        row.update(run=run.name, overrides=changes, reason=run.reason)
        if run.report is not None:
            report, int8 = run.report, run.report.int8
            pair = speed_pair(report.engines)
            row.update(pareto=next(best), within_budget=report.within_budget, max_drop=report.budget.max_drop)
            row.update(accuracy=int8.accuracy, accuracy_drop=report.accuracy_drop)
            row.update(holdout_accuracy=int8.holdout_accuracy, macs=int8.macs, params=int8.params)
            row.update(file_bytes=int8.file_bytes, speedup=report.speedup)
            if pair:
                row.update(latency_ms=pair[1].latency_ms.median, engine=conditions(pair[1]))
        table.append(row)
    return table


def write_csv(runs: Sequence[SweepRun], path: Path) -> Path:
    """Write all runs, also those that failed, with full digits and the columns `COLUMNS`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows(runs))
    return path


def write_png(runs: Sequence[SweepRun], path: Path) -> Path:
    """Draw the finished runs, score against cost, with the Pareto front as a line; at least one must be finished."""
    # Only here: it is two thirds of what `hqp` imports for a tab's completion, --help or an error.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    finished = [r for r in runs if r.report is not None]
    reports = [r.report for r in finished if r.report is not None]
    found, cost = points(reports)
    budget = reports[0].budget
    best = sorted((p for p, on in zip(found, front(found, budget.mode), strict=True) if on), key=lambda p: p.cost)
    with rc_context():
        figure = Figure(figsize=(7.0, 4.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot([p.cost for p in best], [p.accuracy for p in best], color="#1a7f5a", lw=1.4, label="Pareto front")
        for inside, marker, label in ((True, "o", "within budget"), (False, "x", "over budget")):
            chosen = [p for p, r in zip(found, reports, strict=True) if r.within_budget is inside]
            if chosen:
                axes.plot([p.cost for p in chosen], [p.accuracy for p in chosen], marker, color="#22306b", label=label)
        for point, run, changes in zip(found, finished, varied(finished), strict=True):
            text = changes.replace("recipe=", "") or run.name
            axes.annotate(text, (point.cost, point.accuracy), (4, 5), textcoords="offset points", fontsize=6)
        axes.set_xlabel("INT8 latency, ms" if cost == "latency_ms" else "MACs of one sample")
        axes.set_ylabel(budget.monitor, parse_math=False)
        axes.margins(0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path)
    return path


def print_runs(runs: Sequence[SweepRun], console: Console | None = None) -> None:
    """Print one table over the finished runs, then why the others have no report."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    names = ("", "run", _metric(runs), "drop", "held out", "MACs", "ONNX", "ms", "speedup")
    for i, name in enumerate(names):
        table.add_column(Text(name), justify="left" if i < 2 else "right", overflow="fold")
    table_rows = rows(runs)
    for run, row in zip(runs, table_rows, strict=True):
        if run.report is None:
            continue
        r, latency = run.report, row["latency_ms"]
        drop = fraction(r.accuracy_drop) + ("" if r.within_budget else " !")
        scores = (fraction(r.int8.accuracy), drop, fraction(r.int8.holdout_accuracy))
        costs = (count(r.int8.macs), size(r.int8.file_bytes), ms(latency) if isinstance(latency, float) else ABSENT)
        cells = ("*" if row["pareto"] else "", f"{run.name} {row['overrides']}".strip(), *scores, *costs)
        table.add_row(*map(Text, (*cells, factor(r.speedup))), style="bold" if row["pareto"] else "")
    console.print(table)
    reports = [r.report for r in runs if r.report is not None]
    if reports:
        by = "latency" if points(reports)[1] == "latency_ms" else "MACs (not every run was timed)"
        told = f"* no other run is at least as good in {_metric(runs)} and {by}; ! over its budget"
        console.print(Text(told), soft_wrap=True)
        engines = sorted({str(row["engine"]) for row in table_rows if row["engine"]})
        if len(engines) > 1:
            told = f"note: latencies of different conditions do not compare: {'; '.join(engines)}"
            console.print(Text(told), soft_wrap=True)
    for run, row in zip(runs, table_rows, strict=True):
        if run.report is None:
            told = f"failed: {run.name} {row['overrides']}: {run.reason}"
            console.print(Text(told), style="red", soft_wrap=True)
