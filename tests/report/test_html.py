import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import pytest
from report_samples import BASELINE, BUDGET, ENGINES, INT8, PRUNED, STEPS, engine

from hqp_lightning.records import Budget, LayerChannels, Report, UnitSensitivity
from hqp_lightning.report import assemble, write_html

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags in order, links, and text by the innermost tag; raises where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open and self.open[-1] != "style":
            self.texts.append(data.strip())

    def of(self, tag, cls=None):
        return [a for t, a in self.tags if t == tag and (cls is None or cls in (a.get("class") or "").split())]


@pytest.fixture
def page(tmp_path):
    def build(report: Report) -> tuple[str, Page]:
        text = write_html(report, tmp_path / "report.html").read_text(encoding="utf-8")
        return text, Page(text)

    return build


def test_one_well_formed_page_that_needs_nothing_from_outside(page, report):
    text, parsed = page(report)
    assert parsed.references  # markers inside the drawings
    assert all(reference.startswith("#") for reference in parsed.references)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not parsed.of("script")
    assert not parsed.of("link")
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {reference[1:] for reference in parsed.references} <= set(ids)


def test_the_figures_are_those_worked_out_by_hand(page, report):
    _, parsed = page(report)
    words = parsed.texts
    assert "Within budget" in words
    for figure in ("4.00×", "-90.0 %", "-75.0 %", "-60.0 %", "12.0 to 3.00 ms, openvino", "40.0 MB to 4.00 MB"):
        assert figure in words
    assert "On held-out data, which no decision saw, the drop is 0.0200." in words
    gauge = parsed.tags[[a.get("class") for _, a in parsed.tags].index("gauge") + 1][1]
    assert gauge["style"] == "width:50.00%"  # 0.010 where the bar ends at 4/3 of 0.015


def test_sections_stand_in_reading_order(page, report):
    text, _ = page(report)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Models",
        "Trajectory",
        "Channels per layer",
        "Sensitivity per group of layers",
        "Quantization noise per layer",
        "Latency of one call",
        "Steps",
        "Notes",
        "Versions",
    ]


def test_bars_are_as_long_as_their_figures(page, report):
    _, parsed = page(report)
    after, before = ([a["style"] for a in parsed.of("i", kind)] for kind in ("after", "before"))
    assert after[:2] == ["width:18.75%", "width:100.00%"]  # 24 and 128 of 128 channels; then the sensitivities
    assert before[:2] == ["width:50.00%", "width:100.00%"]
    assert [a["style"] for a in parsed.of("i", "float")] == ["width:100.00%"]
    assert [a["style"] for a in parsed.of("i", "noise")] == ["width:33.33%", "width:0.00%"]
    (int8,) = parsed.of("i", "int8")
    assert int8["style"] == "width:22.22%"  # 3 ms where the longest p95 is 13.5
    assert parsed.of("i", "whisker")[0]["style"] == "left:88.89%;width:11.11%"  # 12 to 13.5


def test_engines_come_with_their_throughput_and_the_one_to_deploy(page, sample):
    text, parsed = page(sample(engines=(*ENGINES, engine("openvino", "pruned", "fp16", 2.0, accuracy=0.889))))
    start = parsed.texts.index("2.00 ms (p95 2.20)")
    assert parsed.texts[start + 1] == "500 images/s"  # one image in 2 ms
    assert "<p><b>Fastest engine within the budget: pruned fp16 on openvino, 2.00 ms, 500 images/s" in text


def test_steps_are_told_apart_by_shape_and_word(page, report):
    _, parsed = page(report)
    for words in ("● kept", "× rolled back", "△ refused", "conv1 would keep no channel", "0.3000"):
        assert words in parsed.texts
    assert len(parsed.of("tr", "why")) == 4


def test_over_budget_looks_different(page, sample):
    _, parsed = page(sample(budget=Budget(0.005, "val_acc")))
    assert parsed.of("section", "over")
    assert "Over budget" in parsed.texts


def test_hostile_text_stays_text(page, sample):
    evil = "<script>alert('$x$ & \"y\"')</script>"
    report = sample(
        budget=Budget(0.015, evil),
        steps=tuple(replace(s, reason=evil, outcome=evil if s.index == 4 else s.outcome) for s in STEPS),
        engines=(engine("openvino", evil, "fp32", 2.0, device=evil),),
        channels=(LayerChannels(evil, 2, 1),),
        notes=(evil,),
        versions={evil: evil},
    )
    text, parsed = page(report)
    assert not parsed.of("script")
    assert "<script" not in text
    assert parsed.texts.count(evil) >= 8  # headers, reasons, layer, note, versions, both axes


def test_the_same_report_gives_the_same_bytes_under_any_matplotlibrc(page, report):
    one, _ = page(report)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        two, _ = page(report)
        assert matplotlib.rcParams["font.size"] == 30  # the user's settings are given back
    assert one == two


def test_a_run_with_nothing_to_draw(page):
    report = assemble(BUDGET, *(replace(f, holdout_accuracy=None) for f in (BASELINE, PRUNED, INT8)))
    text, parsed = page(report)
    assert not parsed.of("svg")
    assert "No pruning step was made." in parsed.texts
    assert "held-out" not in text.split("</style>")[1]


def test_the_noisiest_layer_stands_first_with_its_part_of_all_noise(page, report):
    text, parsed = page(report)
    assert "Quantization noise per layer" in text
    # 3e-4 of 4e-4 in all is 75 %, and 10*log10(1/3e-4) = 35.2 dB
    start = parsed.texts.index("conv1 Conv (float)")
    assert parsed.texts[start : start + 4] == [
        "conv1 Conv (float)",
        "35.2 dB (75 %)",
        "layer1.0.conv1 Conv",
        "40.0 dB (25 %)",
    ]
    assert "Quantization noise" not in page(replace(report, quantization=()))[0]


def test_the_sensitivity_of_every_group_is_drawn_to_one_scale(page, report):
    text, parsed = page(report)
    start = parsed.texts.index("Sensitivity per group of layers")
    assert parsed.texts[start:].index("0.5 of 2") > parsed.texts[start:].index("0.12 of 0.5")
    section = text[text.index("Sensitivity per group of layers") :]
    section = section[: section.index("</section>")]
    assert re.findall(r"width:([\d.]+)%", section) == ["25.00", "6.25", "100.00", "25.00"]  # of 2.0 nats
    assert "Sensitivity" not in page(replace(report, sensitivity=()))[0]


def test_why_a_block_went_and_another_did_not(page, sample):
    """Cheapest first, with what each was ranked by and the step that it went with; the step says what it cost."""
    block, other, gate = "branch:block<1>", "branch:block2", "gate:gate"
    steps = (replace(STEPS[0], units_removed=(block,), losses={block: 0.02, "conv1": 0.01}), *STEPS[1:])
    known = {other: (0.5, 4.0, 1.0), block: (0.08, 0.08, 0.02), gate: (0.5, None, 0.5)}
    worth = [UnitSensitivity(unit, *values) for unit, values in known.items()]
    html, _ = page(sample(steps=steps, units=worth, units_removed=(block,)))
    rows = re.findall(rf"<tr><td>(branch|gate) (.*?)</td>{'<td>(.*?)</td>' * 4}</tr>", html)
    assert rows == [
        ("branch", "block&lt;1&gt;", "0.08", "0.08", "0.02", "step 1"),
        ("gate", "gate", "0.5", "-", "0.5", "-"),
        ("branch", "block2", "0.5", "4", "1", "-"),
    ]
    assert "within the budget; predicted rise of the loss, nats: branch block&lt;1&gt; 0.02, conv1 0.01" in html
    assert "removed as a whole: 1 branch (branch block&lt;1&gt;, 0.02 nats)" in html
