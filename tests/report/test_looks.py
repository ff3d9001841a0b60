import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from test_html import Page

from hqp_lightning.records import Advice, GroupNote, Look, LookPoint, PricedPart, QuantizedLayer
from hqp_lightning.report.look_html import render_look
from hqp_lightning.report.look_plot import look_png
from hqp_lightning.report.look_rows import cut_table, part_rows
from hqp_lightning.report.looks import print_look, write_look
from hqp_lightning.report.schema import decode


@pytest.fixture(scope="module")
def found():
    """A look at a network with hostile names."""
    channels = tuple(LookPoint(0.1 * i, 0.01 * 4**i, 1e8 * (1 - 0.1 * i), 1000 - i, 8 * i) for i in (1, 2, 3))
    units = tuple(replace(p, units=("gate:a", "branch:b")) for p in channels)
    parts = (
        PricedPart("<b>.conv", "channels", 64, 0.5, 0.1, 4e7, 400),
        PricedPart("se", "gate", 0, 0.001, 0.001, 1e6, 20),
    )
    kept = (GroupNote("fc", 10, "stays", "its channels are outputs"), GroupNote("x", 8, "left out", "<i>"))
    told = (Advice("step", 0.1, "cheap"), Advice("max_drop", 0.015, "seen"), Advice("every_n_epochs", 3, "long"))
    noise = (QuantizedLayer("/a/a.0/Conv", 1e-3, "int8"), QuantizedLayer("/b/Conv", 1e-4, "int8"))
    return Look(
        "Net", 512, {"val_acc": 0.9}, 1e8, 1000, channels, units, parts, kept, told, noise, 1.1e-3, remarks=("odd",)
    )


def test_the_page_is_whole_and_escaped(found):
    text = render_look(found)
    page = Page(text)
    assert all(reference.startswith("#") for reference in page.references)
    assert page.of("b") == []
    for said in ("<b>.conv", "gate se", "not pruned: x: <i>", "odd"):
        assert said in page.texts
    assert render_look(found) == text


def test_prices_are_for_a_hundredth_of_the_macs_the_cheapest_first(found):
    (gate, conv) = part_rows(found)
    assert gate[0] == "gate se"
    assert gate[-1] == "0.0010"  # 0.001 nats for 1 %
    assert conv[-1] == "0.0050"  # 0.1 nats for the half of 40 %


def test_the_console_fits_80_columns_and_names_what_stays(found):
    out = StringIO()
    print_look(found, Path("look"), Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    tables = [line for line in lines if " %" in line or "─" in line]
    assert max(map(len, tables)) <= 80
    assert "not pruned: fc: its channels are outputs" in lines
    assert any(line.startswith("step=0.1: cheap") for line in lines)


def test_milliseconds_are_told_where_a_table_gave_them(found):
    assert "ms" not in cut_table(found.channels)[0]
    timed = replace(found, channels=tuple(replace(p, latency_ms=1.25) for p in found.channels), latency_ms=1.5)
    headers, rows = cut_table(timed.channels)
    assert rows[0][headers.index("ms")] == "1.25"
    assert "In INT8 1.50 ms by the latency table." in render_look(timed)


def test_the_json_is_the_record(found, tmp_path):
    write_look(found, tmp_path)
    assert decode(json.loads((tmp_path / "look.json").read_text()), Look, "look") == found


def test_the_picture_is_a_png_of_equal_bytes(found):
    picture = look_png(found)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture == look_png(found)
