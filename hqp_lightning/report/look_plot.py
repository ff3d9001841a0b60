"""Foretold loss against the MACs that go, as SVG for the page and as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from hqp_lightning.records import Look
from hqp_lightning.report.plots import INK, INT8, KEPT, LIMIT, RC, inline_svg

__all__ = ["look_png", "look_svg"]

_PLAIN = {INK: "#1b1f24", KEPT: "#0b67b2", INT8: "#0a7d5c", LIMIT: "#c2410c"}
"""The page's light colours, for a file that has no page."""


def look_svg(look: Look, width: float, height: float, name: str) -> str:
    """The curves as an element of a page; arguments as of `trajectory_svg`."""
    label = f"Predicted loss increase of {look.network} against the MACs removed, before healing"
    return inline_svg(
        lambda figure: _draw(figure, look, dict(zip(_PLAIN, _PLAIN, strict=True))), width, height, name, label
    )


def look_png(look: Look) -> bytes:
    """The same as a picture on white."""
    with rc_context():
        rcdefaults()
        rcParams.update({k: _PLAIN[INK] if v == INK else v for k, v in RC.items()})
        figure = Figure(figsize=(7.6, 3.9), dpi=150, layout="constrained", facecolor="white")
        _draw(figure, look, _PLAIN)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw(figure: Figure, look: Look, colours: Mapping[str, str]) -> None:
    axes = figure.add_subplot()
    curves = [("channels", look.channels, KEPT, "o"), ("channels, gates and branches", look.with_units, INT8, "D")]
    for label, points, colour, mark in curves:
        if points:
            axes.plot(
                [p.macs_removed for p in points],
                [p.predicted_loss_increase for p in points],
                color=colours[colour],
                marker=mark,
                ms=5,
                lw=1.4,
                label=label,
            )
    step = next((a for a in look.advice if a.setting == "step"), None)
    if step is not None:
        axes.axvline(step.value, color=colours[LIMIT], lw=1.2, ls=(0, (4, 3)), label="recommended step")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda nats, _: f"{nats:g}"))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
    axes.set_xlim(left=0)
    axes.set_xlabel("MACs removed in one shot")
    axes.set_ylabel("predicted loss increase, nats")
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3 if figure.get_figwidth() > 5 else 1, frameon=False)
