"""The trajectory of a run, the score against MACs, as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hqp_lightning.records import Report, StepRecord
from hqp_lightning.report.labels import heights_at_one_level
from hqp_lightning.report.sentences import verdict
from hqp_lightning.report.units import count, fraction

__all__ = ["RC", "draw_trajectory", "edge_score", "inline_svg", "trajectory_svg"]

# Matplotlib wants real colours, the page has variables: each sentinel is replaced after drawing.
INK, KEPT, LOST, REFUSED, INT8, LIMIT, PAPER = (f"#0102{i:02x}" for i in range(1, 8))
CSS = {
    INK: "currentColor",
    KEPT: "var(--kept)",
    LOST: "var(--lost)",
    REFUSED: "var(--muted)",
    INT8: "var(--int8)",
    LIMIT: "var(--limit)",
    PAPER: "var(--paper)",
}

RC: Any = {  # Any: the type of the keys differs between matplotlib's releases
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

MOST_NUMBERED_STEPS = 20
"""Beyond this many steps their numbers would cover the curve; the table below the plot has them all."""

BUDGETS_SHOWN = 2.5
"""A step that fell below the baseline by more budgets than this is drawn at the edge: it would flatten the rest."""


def edge_score(report: Report) -> float:
    """The worst score that the trajectory has room for; worse ones are drawn here, with their score in brackets."""
    sign = 1 if report.budget.mode == "max" else -1
    return report.held_to - sign * BUDGETS_SHOWN * report.budget.max_drop


def trajectory_svg(report: Report, width: float, height: float, name: str) -> str:
    """Draw the run's path from the dense model to the INT8 artifact.

    Kept steps are filled circles on a line, rolled-back ones crosses, refused ones (never scored) triangles on the
    axis, the INT8 artifact a diamond. The dashed line is the baseline, the solid one the budget.

    Args:
        report: the run; it should have steps.
        width: of the drawing, inches of 72 points; text is 9 points.
        height: likewise.
        name: prefix of every id in the drawing, unique on its page.

    Returns:
        An ``<svg>`` element without fixed size or colours; equal reports give equal text.
    """
    return inline_svg(lambda figure: draw_trajectory(figure, report), width, height, name, verdict(report))


def draw_trajectory(figure: Figure, report: Report, colours: Mapping[str, str] | None = None) -> None:
    """Draw what `trajectory_svg` shows on an empty figure, in this module's colours or in what they are mapped to."""
    _draw(figure.add_subplot(), report, dict(zip(CSS, CSS, strict=True)) if colours is None else colours)
    columns = 3 if figure.get_figwidth() < 5 else 6
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, handletextpad=0.3)


def inline_svg(fill: Callable[[Figure], None], width: float, height: float, name: str, label: str) -> str:
    """A drawing as an ``<svg>`` element that takes its colours from the page; arguments as in `trajectory_svg`.

    Args:
        fill: draws on the figure, in the colours of this module.
        width: inches.
        height: inches.
        name: prefix of every id.
        label: the drawing in words.

    Returns:
        The element.
    """
    with rc_context():
        rcdefaults()  # the same report must give the same bytes, whatever the user's matplotlibrc says
        rcParams.update(RC)
        rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        fill(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    return _inline(buffer.getvalue(), name, label)


def _draw(axes: Axes, report: Report, colours: Mapping[str, str]) -> None:
    base, budget, held_to = report.baseline, report.budget, report.held_to
    numbered = len(report.steps) <= MOST_NUMBERED_STEPS
    sign = 1 if budget.mode == "max" else -1
    limit = held_to - sign * budget.max_drop
    edge = edge_score(report)

    def clip(score: float) -> float:
        return max(score, edge) if sign > 0 else min(score, edge)

    def points(steps: Iterable[StepRecord]) -> tuple[list[float], list[float]]:
        judged = [(s.macs, clip(s.accuracy)) for s in steps if s.accuracy is not None]
        return [x for x, _ in judged], [y for _, y in judged]

    line = "dense baseline" if report.reference is None else "baseline"
    axes.axhline(held_to, color=colours[INK], lw=0.8, ls=(0, (4, 3)), label=line)
    axes.axhline(limit, color=colours[LIMIT], lw=1.2, label="budget")
    marks: dict[str, Any] = {"ls": "none", "zorder": 3, "clip_on": False}
    kept = points(s for s in report.steps if s.outcome == "kept")
    lost = points(s for s in report.steps if s.outcome != "kept")
    axes.plot([base.macs, *kept[0]], [clip(base.accuracy), *kept[1]], color=colours[KEPT], lw=1.4, zorder=2)
    axes.plot(base.macs, clip(base.accuracy), "s", color=colours[INK], ms=6, zorder=4)
    if kept[0]:
        axes.plot(*kept, **{**marks, "marker": "o", "ms": 5.5, "color": colours[KEPT], "label": "kept"})
    if lost[0]:
        axes.plot(
            *lost, **{**marks, "marker": "x", "ms": 6.5, "mew": 1.8, "color": colours[LOST], "label": "rolled back"}
        )
    unscored = [s.macs for s in report.steps if s.accuracy is None]
    if unscored:
        # no score to draw at: on the axis, in axes coordinates
        axes.plot(
            unscored,
            [0.0] * len(unscored),
            transform=axes.get_xaxis_transform(),
            **{
                **marks,
                "marker": "^",
                "ms": 6.5,
                "mfc": colours[PAPER],
                "mec": colours[REFUSED],
                "label": "not scored",
            },
        )
    axes.plot(
        report.int8.macs,
        clip(report.int8.accuracy),
        **{
            **marks,
            "marker": "D",
            "ms": 7.5,
            "mfc": colours[INT8],
            "mec": colours[PAPER],
            "label": "INT8",
            "zorder": 5,
        },
    )
    named = [(str(s.index) if numbered else "", s.macs, s.accuracy) for s in report.steps]
    heights = heights_at_one_level(
        [(macs, fraction(score)) for _, macs, score in named if score is not None and clip(score) != score], axes
    )
    for text, macs, score in (*named, ("", report.int8.macs, report.int8.accuracy)):
        if score is None:
            continue
        y = clip(score)
        text += "" if y == score else f" ({fraction(score)})"
        # away from the INT8 mark, the dashed baseline and the edge
        up = y > (report.int8.accuracy if macs == report.int8.macs else held_to) or y == held_to
        up = sign > 0 if y != score else up
        off = 5 + (heights.pop(0) if y != score and heights else 0)
        place, align = ((0, off), "bottom") if up else ((0, -off), "top")
        axes.annotate(text, (macs, y), place, textcoords="offset points", ha="center", va=align, fontsize=7)
    axes.patch.set_visible(False)  # the page's own paper
    axes.invert_xaxis()  # time runs to the right, MACs fall
    axes.margins(x=0.06, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda macs, _: count(macs)))
    axes.set_xlabel("MACs of one sample")
    axes.set_ylabel(budget.monitor, parse_math=False)  # a dollar is no formula
    axes.spines[["top", "right"]].set_visible(False)


def _inline(svg: str, name: str, label: str) -> str:
    """Matplotlib's SVG file as an element of a page: no prologue, own ids, the page's colours, no fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # its selector is "*": the whole page
    svg = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", svg)  # as older releases write it
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    for sentinel, css in CSS.items():
        svg = svg.replace(sentinel, css)
    box = re.search(r'viewBox="[^"]*"', svg)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")  # its own contract, not the user's input
    title = label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    head = f'<svg class="{name}" {box.group()} role="img"><title>{title}</title>'
    return head + svg[svg.index(">") + 1 :]
