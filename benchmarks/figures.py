"""The figures of docs/how-it-works.md, from the report of a run.

    python benchmarks/figures.py deploy/report.json docs/figures

Writes trajectory.svg, channels.svg, noise.svg and latency.svg, with the report's colours for light and dark.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hqp_lightning.records import Report
from hqp_lightning.report import read_json
from hqp_lightning.report.plots import INK, INT8, KEPT, LOST, REFUSED, inline_svg, trajectory_svg
from hqp_lightning.report.units import count, decibel, ms, node

TRACK = "#c5ccd6"  # behind the bars, in the light and in the dark
NOISIEST = 12
WIDTH, ROW = 7.6, 0.24  # inches


def main() -> None:
    """Read the report, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.json of a run")
    parser.add_argument("folder", type=Path, help="where the figures go")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in figures(read_json(args.report)).items():
        (args.folder / f"{name}.svg").write_text(standalone(drawing), encoding="utf-8")


def figures(report: Report) -> dict[str, str]:
    """Name to ``<svg>`` element."""
    noisy = sorted(report.quantization, key=lambda q: q.noise, reverse=True)[:NOISIEST]
    timed = [(f"{e.model} {e.precision}", e) for e in report.engines]

    def channels(axes: Axes) -> None:
        rows = [c for c in report.channels if c.before != c.after]
        names = bars(axes, [(c.layer, c.before, f"{c.before} → {c.after}") for c in rows], TRACK)
        axes.barh(names, [c.after for c in rows], color=KEPT, height=0.66, label="final")

    def noise(axes: Axes) -> None:
        bars(axes, [(node(q.layer), q.noise, decibel(q.noise)) for q in noisy], LOST)

    def latency(axes: Axes) -> None:
        rows = [(name, e.latency_ms.p95, f"{ms(e.latency_ms.median)} ms") for name, e in timed]
        names = bars(axes, rows, "none")
        colours = [INT8 if e.precision == "int8" else REFUSED if e.model == "dense" else KEPT for _, e in timed]
        medians = [e.latency_ms.median for _, e in timed]
        whiskers = [[0.0] * len(timed), [e.latency_ms.p95 - e.latency_ms.median for _, e in timed]]
        axes.barh(names, medians, xerr=whiskers, color=colours, ecolor=INK, capsize=3, height=0.66)

    changed = sum(c.before != c.after for c in report.channels)
    kept = f"{count(report.baseline.macs)} to {count(report.int8.macs)} MACs"
    return {
        "trajectory": trajectory_svg(report, WIDTH, 3.9, "trajectory"),
        "channels": chart(channels, changed, "channels", f"Channels of each layer, dense and final: {kept}"),
        "noise": chart(noise, len(noisy), "noise", f"Quantization noise of the {len(noisy)} noisiest layers"),
        "latency": chart(latency, len(timed), "latency", "Latency of one call, median and 95th percentile"),
    }


def bars(axes: Axes, rows: Iterable[tuple[str, float, str]], colour: str) -> list[str]:
    """A bar for each (name, length, text behind it), from the top; returns the names."""
    names, lengths, behind = (list(column) for column in zip(*rows, strict=True))
    drawn = axes.barh(names, lengths, color=colour, height=0.66)
    axes.bar_label(drawn, behind, padding=4, fontsize=8)
    return names


def chart(draw: Callable[[Axes], None], rows: int, name: str, label: str) -> str:
    """Horizontal bars without axes."""

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        draw(axes)
        axes.invert_yaxis()
        axes.margins(x=0.12, y=0.01)
        axes.set_xlim(left=0)
        axes.patch.set_visible(False)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="y", length=0)

    return inline_svg(fill, WIDTH, ROW * rows + 0.2, name, label)


def standalone(element: str) -> str:
    """An element of a page as a file: with the page's colours, and paper behind it."""
    css = files("hqp_lightning.report").joinpath("report.css").read_text(encoding="utf-8")
    colours = re.sub(r"\s+", " ", css[: css.index("* {")]).strip()
    style = f"{colours} svg {{ background: var(--paper); color: var(--ink); font-family: system-ui, sans-serif; }}"
    return element.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "</title>", f"</title><style>{style}</style>", 1
    ) + ("" if element.endswith("\n") else "\n")


if __name__ == "__main__":
    main()
