import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from report_samples import INT8, STEPS

from hqp_lightning.records import Budget, StepRecord
from hqp_lightning.report import html, png
from hqp_lightning.report.plots import trajectory_svg


def drawing(report):
    return ElementTree.fromstring(trajectory_svg(report, 7.0, 4.0, "plot").replace(' href="', ' data="'))


def texts(tree):
    return ["".join(node.itertext()) for node in tree.iter("text")]


def marks(tree, colour):
    """Points drawn in a colour inside the axes, legend aside: (x, y) in points of the drawing."""
    axes = next(g for g in tree.iter("g") if g.get("id") == "plot-axes_1")
    uses = [u for u in axes.iter("use") if re.search(rf"(^|; )fill: {re.escape(colour)}", u.get("style", ""))]
    return [(float(u.get("x")), float(u.get("y"))) for u in uses]


def test_kept_steps_lie_on_a_linear_map_of_macs_and_accuracy(report):
    tree = drawing(report)
    kept = marks(tree, "var(--kept)")
    (int8,) = marks(tree, "var(--int8)")
    assert len(kept) == 2
    (x1, y1), (x2, y2) = kept
    assert x1 < x2  # 1.5 G left of 0.5 G: MACs fall to the right
    assert y1 < y2  # 0.904 above 0.895
    assert int8[0] == pytest.approx(x2)  # the INT8 artifact has the MACs of the last kept step
    # 0.904, 0.895 and 0.890: the distances stand as 9 to 5
    assert (y2 - y1) / (int8[1] - y2) == pytest.approx(9 / 5, rel=1e-4)


def test_a_score_far_below_is_drawn_at_the_edge_with_its_value(report):
    assert "3 (0.3000)" in texts(drawing(report))
    close = drawing(replace(report, steps=STEPS[:2]))
    assert not any("(" in t for t in texts(close))


def test_only_what_happened_is_in_the_legend(report):
    def legend(steps):
        return [t for t in texts(drawing(replace(report, steps=steps))) if re.fullmatch(r"[a-zINT8 ]+", t)]

    full = legend(STEPS)
    for word in ("dense baseline", "budget", "kept", "rolled back", "not scored", "INT8"):
        assert word in full
    assert "not scored" not in legend(STEPS[:3])
    assert "rolled back" not in legend(STEPS[:2])


def test_many_steps_are_not_numbered(report):
    many = tuple(replace(STEPS[0], index=i, macs=2e9 - i * 1e7) for i in range(100, 160))
    assert not {str(s.index) for s in many} & set(texts(drawing(replace(report, steps=many))))


def test_a_metric_to_minimise_is_drawn_with_its_budget_above(sample):
    step = StepRecord(1, 0, "rolled_back", "", 0.05, 1, 0.0, 1e9, 1, 9.0, 8.1)
    tree = drawing(sample(budget=Budget(0.1, "loss", "min"), int8=replace(INT8, accuracy=0.95), steps=(step,)))
    (int8,) = marks(tree, "var(--int8)")
    clipped = next(n for n in tree.iter("text") if "1 (9.0000)" in "".join(n.itertext()))
    assert float(clipped.get("y")) < int8[1]  # worse is up


def test_no_colour_of_its_own(report):
    svg = trajectory_svg(report, 7.0, 4.0, "plot")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
    assert "DejaVu" not in svg


@pytest.mark.parametrize("sign", [1, -1])
def test_labels_at_the_edge_do_not_cover_each_other(report, sign):
    """Of four steps that all fell far below, three at nearly the same MACs."""
    lost = [
        StepRecord(i, i, "rolled_back", "too much", 0.05, 8, 0.1, macs, 1, 0.9 - sign * drop, drop, 0.5)
        for i, (macs, drop) in enumerate([(4.1e8, 0.5), (4.3e8, 0.4), (1.4e9, 0.6), (4.6e8, 0.3)], 1)
    ]
    budget = replace(report.budget, mode="max" if sign > 0 else "min")
    tree = drawing(replace(report, budget=budget, steps=tuple(lost)))
    boxes = []
    for node in tree.iter("text"):
        if (text := "".join(node.itertext())).endswith(")") and " (" in text:
            x, y = float(node.get("x")), float(node.get("y"))
            boxes.append((x, y, 3.0 * len(text)))  # narrower than they are
    assert len(boxes) == 4
    for i, (x, y, wide) in enumerate(boxes):
        assert all(abs(x - a) > (wide + b) / 2 or abs(y - c) > 7 for a, c, b in boxes[:i])
    assert len({round(y) for _, y, _ in boxes}) == 3  # the one that is far from the others stands at the edge


def test_the_picture_has_the_colours_of_the_page():
    css = html.files("hqp_lightning.report").joinpath("report.css").read_text(encoding="utf-8")
    light = css[: css.index("@media")]
    assert all(colour in light for colour in png._COLOURS.values())
