"""The trajectory as a picture in fixed colours, for what takes no page: the loggers of a run."""

from __future__ import annotations

import io

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hqp_lightning.records import Report
from hqp_lightning.report.plots import INK, INT8, KEPT, LIMIT, LOST, PAPER, RC, REFUSED, draw_trajectory

__all__ = ["trajectory_png"]

# Those of the page in the light (report.css).
_COLOURS = {
    INK: "#1b1f24",
    KEPT: "#0b67b2",
    LOST: "#c2410c",
    REFUSED: "#5d6672",
    INT8: "#0a7d5c",
    LIMIT: "#c2410c",
    PAPER: "#ffffff",
}


def trajectory_png(report: Report, width: float = 7.6, height: float = 3.9, dpi: int = 120) -> bytes:
    """Draw what `hqp_lightning.report.plots.trajectory_svg` shows as a PNG file.

    Args:
        report: the run; it should have steps.
        width: inches.
        height: inches.
        dpi: pixels an inch.

    Returns:
        The file's bytes.
    """
    with rc_context():
        rcdefaults()
        rcParams.update(
            {key: _COLOURS.get(value, value) if isinstance(value, str) else value for key, value in RC.items()}
        )
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=_COLOURS[PAPER], dpi=dpi)
        draw_trajectory(figure, report, _COLOURS)
        file = io.BytesIO()
        FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
