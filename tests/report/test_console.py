import io

import pytest
from report_samples import BASELINE, BUDGET, ENGINES, INT8, PRUNED, engine
from rich.console import Console

from hqp_lightning.records import Budget
from hqp_lightning.report import assemble, print_report


def printed(report, **options):
    stream = io.StringIO()
    print_report(report, Console(file=stream, **options))
    return stream.getvalue()


def cells(text, first):
    """The line of the first table that begins with a word, with single spaces."""
    return next(" ".join(line.split()) for line in text.splitlines() if line.split()[:1] == [first])


def test_rows_say_what_was_worked_out_by_hand(report):
    text = printed(report)
    # model, score, drop, held-out, drop, MACs, parameters, ONNX, milliseconds
    assert cells(text, "dense") == "dense 0.9000 - 0.8900 - 2.00 G 10.0 M 40.0 MB 12.0 (13.5)"
    assert cells(text, "control") == "control 0.9100 -0.0100 0.8950 -0.0050 2.00 G 10.0 M 40.0 MB -"
    assert cells(text, "pruned") == "pruned 0.8950 0.0050 0.8800 0.0100 500 M 4.00 M 16.0 MB 6.00 (6.50)"
    assert cells(text, "INT8") == "INT8 0.8900 0.0100 0.8700 0.0200 500 M 4.00 M 4.00 MB 3.00 (3.25)"


def test_the_verdict_the_drops_and_the_notes_are_lines_of_their_own(report):
    lines = printed(report).splitlines()
    assert (
        "WITHIN BUDGET: INT8 val_acc is 0.8900 against 0.9000 dense, a drop of 0.0100 where 0.0150 is allowed" in lines
    )
    assert "On held-out data, which no decision saw, the drop is 0.0200." in lines
    assert any(
        "dense model trained for the same epochs, the drop is 0.0200, on held-out data 0.0250." in x for x in lines
    )
    assert (
        "speedup 4.00x (12.0 to 3.00 ms, openvino), file size -90.0 % (40.0 MB to 4.00 MB), "
        "MACs -75.0 % (2.00 G to 500 M), parameters -60.0 % (10.0 M to 4.00 M)" in lines
    )
    assert "4 pruning steps: 2 kept, 1 rolled back, 1 refused" in lines
    assert "note: TensorRT was not built: no NVIDIA driver." in lines


def test_over_budget_is_said(sample):
    text = printed(sample(budget=Budget(0.005, "val_acc")))
    assert "OVER BUDGET" in text
    assert "WITHIN BUDGET" not in text


def test_every_engine_is_listed_with_its_device(sample):
    text = printed(sample(engines=(*ENGINES, engine("onnxruntime", "pruned", "int8", 9.0, 9.5, device="another CPU"))))
    assert "onnxruntime pruned int8 1 2 9.00 9.50 111 -" in [" ".join(line.split()) for line in text.splitlines()]
    assert "openvino on a CPU" in text
    assert "onnxruntime on another CPU" in text


def test_the_engine_to_deploy_stands_below_them(sample):
    scored = engine("openvino", "pruned", "int8", 3.0, accuracy=0.89)
    assert "Fastest engine within the budget: pruned int8 on openvino" in printed(
        sample(engines=(*ENGINES[:2], scored))
    )
    assert "Fastest" not in printed(sample())  # none was scored


@pytest.mark.parametrize("monitor", ["val_acc", "validation/MulticlassAccuracy[top1]"])
def test_it_fits_80_columns_in_ascii_without_colours(sample, monitor):
    report = sample(budget=Budget(0.015, monitor))
    text = printed(report, width=80, force_terminal=True, no_color=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in printed(report)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # a log in the C locale; a character beyond it raises
    print_report(report, Console(file=stream))
    stream.flush()
    for number in ("0.8900", "500 M", "(3.25)"):
        assert number in text


def test_a_run_with_nothing_timed_pruned_or_held_out_prints(capsys):
    print_report(assemble(BUDGET, BASELINE, PRUNED, INT8))
    text = capsys.readouterr().out
    assert "no pruning steps" in text
    assert "speedup - (not timed)" in text
