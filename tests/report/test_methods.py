import io
import json

import pytest
from rich.console import Console

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget, EngineReport, Latency, ModelFigures
from hqp_lightning.report import compare_methods, methods_table, print_methods, read_methods, write_methods

FIGURES = {
    "dense": ModelFigures(0.95, 100e6, 10, 40_000_000, holdout_accuracy=0.94),
    "INT8 only": ModelFigures(0.945, 100e6, 10, 10_000_000, holdout_accuracy=0.943),
    "pruned": ModelFigures(0.90, 50e6, 5, 20_000_000, holdout_accuracy=0.91),
    "HQP": ModelFigures(0.94, 50e6, 5, 5_000_000, holdout_accuracy=0.93),
}
ENGINE_OF = {"dense": ("dense", "fp32"), "INT8 only": ("dense", "int8"), "HQP": ("hqp", "int8")}


def engine(backend, model, precision, median):
    return EngineReport(backend, model, precision, Latency(median, 1.5 * median, 10), 1, 2, "a CPU", "x.onnx")


@pytest.fixture
def comparison():
    engines = [engine("onnxruntime", *key, 99.0) for key in ENGINE_OF.values()]
    times = zip(ENGINE_OF.values(), (8.0, 4.0, 2.0), strict=True)
    engines += [engine("openvino", *key, ms) for key, ms in times]
    return compare_methods(Budget(0.015, "val_acc"), FIGURES, engines, ENGINE_OF, ["a note"])


def test_what_follows_from_the_dense_model_by_hand(comparison):
    rows = {m.method: m for m in comparison.methods}
    assert list(rows) == list(FIGURES)
    assert rows["HQP"].accuracy_drop == pytest.approx(0.01)
    assert rows["INT8 only"].holdout_accuracy_drop == pytest.approx(-0.003)
    assert rows["pruned"].size_reduction == pytest.approx(0.5)
    # OpenVINO is preferred; what it did not time has no latency.
    assert [m.latency_ms and m.latency_ms.median for m in comparison.methods] == [8.0, 4.0, None, 2.0]
    assert [m.speedup for m in comparison.methods] == [1.0, 2.0, None, 4.0]


def test_a_metric_that_falls_is_worse_when_it_rises():
    figures = {"dense": ModelFigures(0.1, 1.0, 1, 4), "HQP": ModelFigures(0.3, 1.0, 1, 1)}
    found = compare_methods(Budget(0.015, "val_loss", "min"), figures, [], {})
    assert found.methods[1].accuracy_drop == pytest.approx(0.2)
    assert found.methods[1].holdout_accuracy_drop is None
    assert "HQP is OVER its budget" in methods_table(found)
    assert "Nothing was timed." in methods_table(found)


def test_files_say_the_same_and_read_back(comparison, tmp_path):
    data, table = write_methods(comparison, tmp_path)
    assert (data.name, table.name) == ("comparison.json", "comparison.md")
    assert read_methods(data) == comparison
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[2].startswith("| dense | 0.9500 | - | 0.9400 | - | 100 M | 40.0 MB | - | 8.00 (12.0) | 1.00x |")
    assert lines[5].startswith(
        "| HQP | 0.9400 | 0.0100 | 0.9300 | 0.0100 | 50.0 M | 5.00 MB | -87.5 % | 2.00 (3.00) | 4.00x |"
    )
    assert "HQP is within its budget: drop 0.0100 of 0.0150." in lines[7]
    assert "openvino, batch 1, 2 threads, a CPU" in lines[8]
    assert lines[9] == "a note"


def test_the_console_has_every_row(comparison):
    out = io.StringIO()
    print_methods(comparison, Console(file=out, width=120))
    for words in (*FIGURES, "4.00x", "-87.5 %", "a note"):
        assert words in out.getvalue()


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(ConfigurationError, match="is no comparison.json of schema_version 1"):
        read_methods(tmp_path / "x.json")
