import csv
import dataclasses

import pytest
from PIL import Image
from rich.console import Console

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget, EngineReport, Latency, ModelFigures, Report
from hqp_lightning.report import write_json
from hqp_lightning.sweeps import front, objectives, read_runs
from hqp_lightning.sweeps.hook import main
from hqp_lightning.sweeps.pareto import COLUMNS, Point, print_runs
from hqp_lightning.sweeps.resume import note_failure


def report(accuracy, latency_ms=None, macs=50.0, max_drop=0.02):
    dense = ModelFigures(accuracy=0.95, macs=100.0, params=10, file_bytes=40, holdout_accuracy=0.94)
    int8 = dataclasses.replace(dense, accuracy=accuracy, macs=macs, file_bytes=4)
    drop = 0.95 - accuracy
    times = [("dense", "fp32", 8.0), ("pruned", "int8", latency_ms)] if latency_ms else []
    engines = tuple(EngineReport("openvino", m, p, Latency(t, t, 9), 1, 2, "a CPU", "x") for m, p, t in times)
    speedup = 8.0 / latency_ms if latency_ms else None
    figures = (drop <= max_drop, drop, 0.9, 0.5, speedup)
    return Report(Budget(max_drop, "val_acc"), dense, int8, int8, *figures, engines=engines)


def write_run(folder, name, overrides, made=None, failure=None):
    run = folder / name
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides))
    if made is not None:
        (run / "deploy").mkdir()
        write_json(made, run / "deploy" / "report.json")
    if failure is not None:
        note_failure(run, failure)


@pytest.fixture
def sweep(tmp_path):
    for i, (accuracy, latency) in enumerate([(0.945, 4.0), (0.94, 2.0), (0.935, 3.0), (0.92, 1.0)]):
        write_run(tmp_path, f"{i}_r", ["recipe=r", f"hqp.max_drop=0.{i}"], report(accuracy, latency))
    write_run(tmp_path, "10_r", ["recipe=r", "hqp.max_drop=9"], failure=ConfigurationError("max_drop=9 is too much"))
    write_run(tmp_path, "9_r", ["recipe=r", "hqp.max_drop=0.9"])
    return tmp_path


def test_front_by_hand():
    found = [Point(0.945, 4.0), Point(0.94, 2.0), Point(0.935, 3.0), Point(0.92, 1.0), Point(0.92, 1.0)]
    assert front(found) == [True, True, False, True, True]
    assert front(found, "min") == [False, False, False, True, True]
    assert front([]) == []


def test_objectives_are_accuracy_and_latency_or_macs():
    assert objectives(report(0.94, 2.0)) == (0.94, 2.0)
    assert objectives(report(0.94)) == (0.94, 50.0)


def test_runs_are_read_in_order_with_reasons(sweep):
    runs = read_runs(sweep)
    assert [r.name for r in runs] == ["0_r", "1_r", "2_r", "3_r", "9_r", "10_r"]
    assert [r.reason for r in runs[4:]] == ["not finished", "ConfigurationError: max_drop=9 is too much"]
    assert runs[0].overrides == ("recipe=r", "hqp.max_drop=0.0")
    assert runs[1].report == report(0.94, 2.0)


def test_command_writes_table_csv_and_png_and_fails_for_failed_runs(sweep, capsys):
    assert main([str(sweep)]) == 1
    out = capsys.readouterr().out
    assert "failed: 10_r hqp.max_drop=9: ConfigurationError: max_drop=9 is too much" in out
    assert "failed: 9_r hqp.max_drop=0.9: not finished" in out
    with (sweep / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [r["pareto"] for r in rows] == ["True", "True", "False", "True", "", ""]
    assert [r["within_budget"] for r in rows[:4]] == ["True", "True", "True", "False"]
    assert [float(r["latency_ms"]) for r in rows[:4]] == [4.0, 2.0, 3.0, 1.0]
    assert rows[1]["overrides"] == "hqp.max_drop=0.1"
    assert float(rows[1]["speedup"]) == 4.0
    with Image.open(sweep / "pareto.png") as image:
        assert image.format == "PNG"
        colours = {c for _, c in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x1A, 0x7F, 0x5A), (0x22, 0x30, 0x6B)} <= colours  # the front's line and the points


def test_command_succeeds_where_all_runs_did(tmp_path, capsys):
    write_run(tmp_path, "0_a", ["recipe=a"], report(0.94, 2.0))
    write_run(tmp_path, "1_b", ["recipe=b"], report(0.93, 1.0))
    target = tmp_path / "elsewhere.csv"
    assert main([str(tmp_path), "--csv", str(target)]) == 0
    assert "recipe=a" in target.read_text()
    assert "failed" not in capsys.readouterr().out


def test_table_marks_the_front_and_what_is_over_budget(sweep):
    console = Console(width=160, force_terminal=False, record=True)
    print_runs(read_runs(sweep), console)
    lines = {
        line.split()[1 if line.startswith("*") else 0]: line for line in console.export_text().splitlines() if line
    }
    assert lines["1_r"].startswith("*")
    assert "0.9400" in lines["1_r"]
    assert "4.00x" in lines["1_r"]
    assert not lines["2_r"].startswith("*")
    assert "0.0300 !" in lines["3_r"]


def test_macs_decide_where_a_run_was_not_timed(tmp_path, capsys):
    write_run(tmp_path, "0_a", ["recipe=a"], report(0.94, 2.0, macs=50.0))
    write_run(tmp_path, "1_b", ["recipe=b"], report(0.93, None, macs=60.0))
    assert main([str(tmp_path)]) == 0
    assert "MACs (not every run was timed)" in capsys.readouterr().out


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no runs below" in capsys.readouterr().err
