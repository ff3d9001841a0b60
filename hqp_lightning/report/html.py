"""The report as one page that opens offline, on a phone, in the dark and on paper."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from os import PathLike
from pathlib import Path

from hqp_lightning.board.files import write_whole
from hqp_lightning.records import Report
from hqp_lightning.report.compiled import compiler_html
from hqp_lightning.report.gone import unit_line
from hqp_lightning.report.html_sections import channels, latencies, models, quantization, sensitivity, steps, trajectory
from hqp_lightning.report.predicted import predicted_line
from hqp_lightning.report.sentences import against, group_lines, key_figures, other_drops, unpruned
from hqp_lightning.report.tensors import tensors_html
from hqp_lightning.report.units import fraction
from hqp_lightning.report.worth import units_html

__all__ = ["page", "render_html", "section", "write_html"]


def write_html(report: Report, path: str | PathLike[str]) -> Path:
    """Write `render_html` to a file; equal reports give equal bytes.

    Args:
        report: what to show.
        path: the file to write; its folder must exist.

    Returns:
        The path.
    """
    path = Path(path)
    write_whole(path, render_html(report).encode())
    return path


def render_html(report: Report) -> str:
    """The page: verdict, key figures, trajectory, channels, sensitivity, latencies, steps, notes, versions.

    Args:
        report: what to show.

    Returns:
        A whole HTML document without any reference to the outside and without scripts.
    """
    sections = (
        _verdict(report),
        _figures(report),
        section("Models", models(report)),
        section("Trajectory", "" if unpruned(report) else trajectory(report)),
        section("Channels per layer", channels(report)),
        section("Sensitivity per group of layers", sensitivity(report)),
        section("Quantization noise per layer", quantization(report.quantization)),
        section("Float and INT8, tensor by tensor", tensors_html(report)),
        section("Latency of one call", latencies(report)),
        section("Latency table", "".join(f"<p>{escape(text)}</p>" for text in filter(None, [predicted_line(report)]))),
        section("NVIDIA's compiler", compiler_html(report)),
        section("Steps", steps(report)),
        section("Gates and blocks of the dense model", units_html(report)),
        section("Removed as a whole", f"<p>{escape(unit_line(report))}</p>" if report.units_removed else ""),
        section("Groups of channels", "".join(f"<p>{escape(text)}</p>" for text in group_lines(report))),
        section("Notes", "".join(f"<p>{escape(note)}</p>" for note in report.notes)),
        section("Versions", _versions(report)),
    )
    done = "quantized" if unpruned(report) else "pruned and quantized"
    heading = f"HQP report: {done} under one budget"
    return page(f"HQP report: {report.budget.monitor}", heading, "".join(sections))


def page(title: str, heading: str, body: str) -> str:
    """A whole document in the style of the report; ``body`` is HTML, the others are text."""
    style = files("hqp_lightning.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(heading)}</h1>\n{body}</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """A part of a page under a heading, or nothing where it has no body; ``body`` is HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _verdict(report: Report) -> str:
    budget, drop = report.budget, report.accuracy_drop
    # the bar ends a third beyond the budget, or at the drop where that is larger
    scale = max(budget.max_drop * 4 / 3, drop) or 1.0
    used, limit = 100 * max(drop, 0.0) / scale, 100 * budget.max_drop / scale
    dense = f"the dense model {fraction(report.baseline.accuracy)}"
    held_to = dense if report.reference is None else f"against {against(report)}"
    smaller = " (smaller is better)" if budget.mode == "min" else ""
    return (
        f'<section class="verdict{"" if report.within_budget else " over"}">\n'
        f"<strong>{'Within budget' if report.within_budget else 'Over budget'}</strong>\n"
        f"<p>The INT8 artifact reaches <b>{fraction(report.int8.accuracy)}</b> {escape(budget.monitor)}{smaller}, "
        f"{held_to}: "
        f"a drop of <b>{fraction(drop)}</b> where {fraction(budget.max_drop)} is allowed.</p>\n"
        f'<div class="gauge"><i style="width:{used:.2f}%"></i><b style="left:calc({limit:.2f}% - 3px)"></b></div>\n'
        f'<div class="ends" style="width:{limit:.2f}%"><span>drop {fraction(drop)}</span>'
        f"<span>&Delta;max {fraction(budget.max_drop)}</span></div>\n"
        f"{''.join(f'<p>{escape(s)}</p>' for s in other_drops(report))}</section>\n"
    )


def _figures(report: Report) -> str:
    cards = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="figure">{figure.replace("x", "&times;")}</dd>'
        f'<dd class="small">{escape(behind)}</dd></div>\n'
        for name, figure, behind in key_figures(report)
    )
    return f'<dl class="figures">\n{cards}</dl>\n'


def _versions(report: Report) -> str:
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>\n" for k, v in report.versions.items())
    return f'<dl class="versions">\n{items}</dl>' if items else ""
