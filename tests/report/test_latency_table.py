import json
from dataclasses import replace

import pytest
from report_samples import sample

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import LatencyFigures, LatencyTable, NetworkTime, Part
from hqp_lightning.report.latency_table import read_table, write_table
from hqp_lightning.report.predicted import predicted_line

TABLE = LatencyTable(
    engine="openvino",
    version="2026.4",
    device="a CPU",
    threads=1,
    clock="processor",
    batch_size=1,
    inputs=((3, 32, 32),),
    parts={"a": Part("a", ("a",), per_channel=False), "/Add": Part("", ("a",))},
    networks=(NetworkTime("dense", "int8", {"a": (8, 16)}, 1.25, {"a": 1.0, "/Add": 0.25}),),
)


def test_a_table_comes_back_as_it_was_written(tmp_path):
    assert read_table(write_table(TABLE, tmp_path / "table.json")) == TABLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "no latency table at .*`hqp-engine profile` writes one"),
        ("{", "is not JSON"),
        ({"schema_version": 2}, "no latency table of schema version 1"),
        ({"threads": "one"}, "threads is 'one'; expected an integer"),
        ({"clock": None, "oven": 1}, r"unknown fields \['oven'\]"),
        ({"parts": {"a": {"module": "a"}}}, "lacks"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, change, message):
    path = write_table(TABLE, tmp_path / "orin.json")
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigurationError, match=message):
        read_table(path)


def test_the_report_says_what_was_predicted_and_measured():
    assert predicted_line(sample()) == ""
    figures = LatencyFigures("openvino", "2026.4", "a CPU", 1, "processor", 0.4, 1.0, 0.8, 0.5, 1.1)
    line = predicted_line(replace(sample(), latency=figures))
    assert line == (
        "latency table of openvino 2026.4 (processor time, 1 thread, a CPU): INT8 predicted 0.4 ms (2.50× the dense "
        "float network's 1 ms), measured 0.5 ms (2.20× the dense float network's 1.1 ms)"
    )
    far = LatencyFigures("tensorrt", "10.3", "Orin", 0, "gpu", 0.4)
    assert predicted_line(replace(sample(), latency=far)).endswith("predicted 0.4 ms, not measured here")
