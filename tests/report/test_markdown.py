from dataclasses import replace

from report_samples import BASELINE, BUDGET, INT8, PRUNED

from hqp_lightning.records import Budget
from hqp_lightning.report import assemble, markdown_table


def parse(text):
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_rows_and_columns_with_control_and_held_out_data(report):
    header, rule, *rows = parse(markdown_table(report))
    assert header == ["model", r"val\_acc", "drop", "held-out", "held-out drop", "drop vs control",
                      "held-out drop vs control", "MACs", "params", "ONNX size", "latency, ms: median (p95)",
                      "speedup"]  # fmt: skip
    assert rule == [":--"] + ["--:"] * 11
    assert rows == [
        ["dense", "0.9000", "-", "0.8900", "-", "-", "-", "2.00 G", "10.0 M", "40.0 MB", "12.0 (13.5)", "1.00x"],
        ["control", "0.9100", "-0.0100", "0.8950", "-0.0050", "-", "-", "2.00 G", "10.0 M", "40.0 MB", "-", "-"],
        ["pruned", "0.8950", "0.0050", "0.8800", "0.0100", "0.0150", "0.0150", "500 M", "4.00 M", "16.0 MB",
         "6.00 (6.50)", "2.00x"],
        ["INT8", "0.8900", "0.0100", "0.8700", "0.0200", "0.0200", "0.0250", "500 M", "4.00 M", "4.00 MB",
         "3.00 (3.25)", "4.00x"],
    ]  # fmt: skip


def test_the_line_below_says_verdict_units_and_conditions(report):
    below = markdown_table(report).splitlines()[-1]
    assert below.startswith("INT8 is within budget: drop 0.0100 of 0.0150 allowed.")
    assert "openvino, batch 1, 2 threads, a CPU" in below


def test_columns_that_a_run_lacks_are_left_out():
    report = assemble(BUDGET, *(replace(f, holdout_accuracy=None) for f in (BASELINE, PRUNED, INT8)))
    table = parse(markdown_table(report))
    assert [row[0] for row in table[2:]] == ["dense", "pruned", "INT8"]
    assert {len(row) for row in table} == {8}
    assert "held-out" not in markdown_table(report).lower()


def test_a_name_cannot_break_the_table(sample):
    text = markdown_table(sample(budget=Budget(0.001, "a|b\n<i>c</i>")))
    assert r"a\|b \<i\>c\</i\>" in text.splitlines()[0]
    assert "**over** budget" in text
