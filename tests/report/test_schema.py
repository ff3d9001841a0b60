import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from hqp_lightning import records
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.report import from_dict, read_json, to_dict, write_json

DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def test_round_trip_is_exact(sample, tmp_path):
    for report in (sample(), sample(control=None, engines=(), steps=(), channels=(), notes=("Δ <&>",))):
        path = write_json(report, tmp_path / "report.json")
        assert read_json(path) == report


def test_json_is_the_record_field_by_field_in_order(report, tmp_path):
    data = json.loads(write_json(report, tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(data) == [f.name for f in fields(records.Report)]
    assert data["budget"] == {"max_drop": 0.015, "monitor": "val_acc", "mode": "max"}
    assert data["int8"]["file_bytes"] == 4_000_000
    assert data["engines"][0]["latency_ms"] == {"median": 12.0, "p95": 13.5, "runs": 50}
    assert data["steps"][3]["outcome"] == "refused"
    assert data["steps"][3]["accuracy"] is None
    assert data["accuracy_drop"] == pytest.approx(0.01)


def test_equal_reports_give_equal_bytes(sample, tmp_path):
    one, two = (write_json(sample(), tmp_path / name).read_bytes() for name in ("1.json", "2.json"))
    assert one == two


def test_a_step_that_diverged_does_not_cost_the_report(report, tmp_path):
    step = replace(report.steps[0], accuracy=math.nan, accuracy_drop=math.inf)
    path = write_json(replace(report, steps=(step,)), tmp_path / "report.json")
    assert not re.search(r"NaN|Infinity", path.read_text(encoding="utf-8"))
    assert (read_json(path).steps[0].accuracy, read_json(path).steps[0].accuracy_drop) == (None, None)


def test_a_figure_that_must_be_there_is_named_when_it_is_not_finite(report):
    with pytest.raises(ConfigurationError, match=r"report\.int8\.accuracy is nan; expected a finite number"):
        to_dict(replace(report, int8=replace(report.int8, accuracy=math.nan)))


def test_numpy_scalars_become_plain_numbers(report):
    data = to_dict(replace(report, int8=replace(report.int8, accuracy=np.float32(0.5), params=np.int64(7))))
    assert type(data["int8"]["accuracy"]) is float
    assert type(data["int8"]["params"]) is int
    json.dumps(data)


@pytest.mark.parametrize("version", [2, "1", None])
def test_another_schema_version_is_refused(report, version):
    with pytest.raises(ConfigurationError, match=f"schema_version {version!r}; this version .* reads 1"):
        from_dict({**to_dict(report), "schema_version": version})


def test_unknown_missing_and_mistyped_fields_are_named(report):
    data = to_dict(report)
    with pytest.raises(ConfigurationError, match=r"unknown fields \['colour'\]"):
        from_dict({**data, "colour": "red"})
    del data["int8"]["macs"]
    with pytest.raises(ConfigurationError, match=r"report\.int8 .* lacks \['macs'\]"):
        from_dict(data)
    for path, value in {"within_budget": "yes", "accuracy_drop": "0.1", "steps": {}, "versions": [], "int8": 3}.items():
        with pytest.raises(ConfigurationError, match=rf"report\.{path} is .*; expected"):
            from_dict({**to_dict(report), path: value})
    with pytest.raises(ConfigurationError, match=r"report\.steps\[0\]\.macs is True"):
        from_dict({**to_dict(report), "steps": [{**to_dict(report)["steps"][0], "macs": True}]})


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="report.json is not JSON"):
        read_json(path)


def test_every_field_is_documented_and_no_other():
    text = DOCS.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `(\w+)`.*?\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    names = (
        "Report",
        "Budget",
        "ModelFigures",
        "StepRecord",
        "EngineReport",
        "CompiledEngine",
        "Latency",
        "LayerChannels",
        "GroupSensitivity",
        "UnitSensitivity",
        "GroupNote",
        "QuantizedLayer",
        "ComparedTensor",
        "LatencyFigures",
    )
    assert set(sections) == set(names)
    for name in names:
        documented = re.findall(r"^\| `(\w+)` \|", sections[name], flags=re.MULTILINE)
        assert documented == [f.name for f in fields(getattr(records, name))]
