"""A look in all its forms: three files of a folder, and the console."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hqp_lightning.board.files import write_whole
from hqp_lightning.records import Look
from hqp_lightning.report.console import columns
from hqp_lightning.report.look_html import render_look
from hqp_lightning.report.look_plot import look_png
from hqp_lightning.report.look_rows import PART_HEADERS, cut_table, kept_lines, noise_line, part_rows
from hqp_lightning.report.schema import encode
from hqp_lightning.report.units import count, decibel, ms, node

__all__ = ["print_look", "write_look"]

_ROWS = 12  # on the console; the page has all
_NOISY = 5


def write_look(look: Look, folder: Path) -> None:
    """Write ``look.json``, ``look.html`` and ``look.png``, each whole or not at all."""
    text = json.dumps(encode(look, Look, "look"), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(folder / "look.json", f"{text}\n".encode())
    write_whole(folder / "look.html", render_look(look).encode())
    write_whole(folder / "look.png", look_png(look))


def print_look(look: Look, folder: Path, console: Console | None = None) -> None:
    """Print what fits a terminal of 80 columns.

    Args:
        look: what to print.
        folder: where the files are.
        console: where to; by default standard output.
    """
    console = console or Console()

    def line(text: str, style: str = "") -> None:
        console.print(Text(text), style=style, soft_wrap=not console.is_terminal)

    scores = ", ".join(f"{n} {v:.4f}" for n, v in look.metrics.items())
    line(f"{look.network}: {count(look.macs)} MACs, {count(look.params)} parameters", "bold")
    line(f"dense, on {look.samples:,} samples: {scores or 'validation logged nothing'}")
    if look.latency_ms is not None:
        line(f"dense in INT8: {ms(look.latency_ms)} ms by the latency table")
    for title, points in (("channels", look.channels), ("channels, gates and branches", look.with_units)):
        if points:
            console.print()
            line(f"predicted loss of one cut of {title}, before healing")
            _table(console, *cut_table(points))
    rows = part_rows(look)
    if rows:
        console.print()
        line(f"prices, the cheapest first{f' ({_ROWS} of {len(rows)})' if len(rows) > _ROWS else ''}")
        _table(console, PART_HEADERS, rows[:_ROWS])
    if look.quantization:
        console.print()
        line(noise_line(look))
        loud = sorted(look.quantization, key=lambda q: q.noise, reverse=True)[:_NOISY]
        line(f"noisiest alone: {', '.join(f'{node(q.layer)} {decibel(q.noise)}' for q in loud)}")
    console.print()
    for text in (*kept_lines(look), *look.remarks):
        line(text)
    console.print()
    for a in look.advice:
        line(f"{a.setting}={a.value:g}: {a.reason}", "bold")
    line(f"written: {folder / 'look.html'}, look.json, look.png")


def _table(console: Console, headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = columns(*headers)
    for cells in rows:
        table.add_row(*map(Text, cells))
    console.print(table)
