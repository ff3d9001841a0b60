"""What pruning would cost, as one page in the style of the report."""

from __future__ import annotations

from html import escape

from hqp_lightning.records import Look, LookPoint
from hqp_lightning.report.html import page, section
from hqp_lightning.report.html_sections import quantization, table
from hqp_lightning.report.look_plot import look_svg
from hqp_lightning.report.look_rows import PART_HEADERS, cut_table, kept_lines, noise_line, part_rows
from hqp_lightning.report.units import count, ms

__all__ = ["render_look"]


def render_look(look: Look) -> str:
    """A whole HTML document without any reference to the outside and without scripts."""
    body = (
        _advice(look),
        section("Notes", "".join(f"<p>{escape(text)}</p>\n" for text in look.remarks)),
        section("Predicted loss against MACs removed", _curves(look)),
        section("Prices", _parts(look)),
        section("What stays, and why", "".join(f"<p>{escape(line)}</p>\n" for line in kept_lines(look))),
        section("INT8 noise of the dense network", _noise(look)),
        section("Versions", _versions(look)),
    )
    return page(f"hqp-look: {look.network}", f"What pruning would cost {look.network}", "".join(body))


def _advice(look: Look) -> str:
    cards = "".join(
        f'<div><dt>{escape(a.setting)}</dt><dd class="figure">{a.value:g}</dd>'
        f'<dd class="small">{escape(a.reason)}</dd></div>\n'
        for a in look.advice
    )
    scores = ", ".join(f"{n} {v:.4f}" for n, v in look.metrics.items())
    dense = f"Dense: {count(look.macs)} MACs, {count(look.params)} parameters; on {look.samples:,} samples {scores}."
    if look.latency_ms is not None:
        dense += f" In INT8 {ms(look.latency_ms)} ms by the latency table."
    return f'<p>{escape(dense)} Nothing was changed.</p>\n<dl class="figures">\n{cards}</dl>\n'


def _curves(look: Look) -> str:
    drawings = look_svg(look, 7.6, 3.9, "wide") + look_svg(look, 3.9, 3.6, "narrow")
    lead = (
        "One cut of that size, with no healing and nothing that makes up for it: half the sum of the Fisher values, a "
        "guess of second order that falls short where the cut is large. Every cut below was proved on a copy."
    )
    return f'<p class="small">{escape(lead)}</p>\n<figure>\n{drawings}</figure>\n' + "".join(
        f"<h3>{escape(title)}</h3>\n{_cuts(points)}"
        for title, points in (("Channels", look.channels), ("Channels, gates and branches", look.with_units))
        if points
    )


def _cuts(points: tuple[LookPoint, ...]) -> str:
    headers, rows = cut_table(points)
    return table(headers, (f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>\n" for cells in rows))


def _parts(look: Look) -> str:
    lead = (
        "Coupled groups of channels, and units that go as a whole, by the price of the cheaper half for a hundredth of "
        "the dense MACs. Each by itself: what two groups share is counted in both."
    )
    rows = (f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>\n" for cells in part_rows(look))
    return f'<p class="small">{escape(lead)}</p>\n{table(PART_HEADERS, rows)}'


def _noise(look: Look) -> str:
    return f"<p>{escape(noise_line(look))}</p>\n{quantization(look.quantization)}" if look.quantization else ""


def _versions(look: Look) -> str:
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>\n" for k, v in look.versions.items())
    return f'<dl class="versions">\n{items}</dl>' if items else ""
