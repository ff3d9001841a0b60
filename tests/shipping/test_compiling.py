"""Engines for other machines' GPUs at the end of a run."""

import hashlib
import io
import json

import pytest
import torch
from classifier import Classifier
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import ConfigurationError, Int8Export
from hqp_lightning.report import from_dict, print_report, to_dict
from hqp_lightning.report.html import render_html


@pytest.fixture
def run(make_trainer, tmp_path):
    """``run(**options)``: the report of a small export, and its folder."""

    def export(**options):
        torch.manual_seed(0)
        model = Classifier()
        model.net = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(512, 10)
        )
        data = DataLoader(TensorDataset(torch.randn(32, 3, 8, 8), torch.arange(32) % 10), 16)
        common = {
            "placement": "all",
            "calibration_batches": 2,
            "engines": ["onnxruntime"],
            "latency_runs": 2,
            "threads": 1,
        }
        callback = Int8Export(tmp_path / "deploy", "val_acc", 0.99, **common, **options)
        make_trainer(1, [callback]).fit(model, data, data)
        return callback.report, tmp_path / "deploy"

    return export


def test_dense_pruned_and_int8_for_every_capability(compiler, run):
    report, folder = run(rtx=("8.6", "12.0"))
    made = {(e.model, e.precision, e.compute_capability): e for e in report.compiled}
    models = [("dense", "fp16"), ("pruned", "fp16"), ("pruned", "int8")]
    assert list(made) == [(*m, c) for m in models for c in ("8.6", "12.0")]
    int8 = made["pruned", "int8", "8.6"]
    assert (int8.int8_layers, int8.int8_asked, int8.in_float) == (3, 3, ())
    content = json.loads((folder / "manifest.json").read_text())
    assert [e["path"] for e in content["engines"]] == [e.path for e in report.compiled]
    for entry, engine in zip(content["engines"], report.compiled, strict=True):
        plan = (folder / engine.path).read_bytes()
        assert (len(plan), hashlib.sha256(plan).hexdigest()) == (engine.engine_bytes, entry["sha256"])
        assert entry["tensorrt_rtx"] == engine.version
        table = json.loads((folder / engine.path).with_suffix(".layers.json").read_text())
        assert len(table["Layers"]) >= engine.kernels > 0
    assert content["engines"][0]["gpus"] == "Ampere, RTX 30"
    assert "tensorrt-rtx==" in content["run_engines"]["install"]
    assert from_dict(to_dict(report)) == report
    stream = io.StringIO()
    print_report(report, Console(file=stream))
    assert "engines for compute capability 8.6, 12.0, not run here; 8.6: dense FP16" in stream.getvalue()
    assert "(3 of 3 layers in INT8)" in stream.getvalue()
    assert "fewer kernels and more INT8 layers are no measured time" in render_html(report)


def test_an_interrupted_search_for_a_placement_ends_in_the_export_that_comes_later(make_trainer, tmp_path, monkeypatch):
    asked = []

    def cost(path, ranges, exclude, capability, **where):
        if len(asked) == 3:
            raise OSError("the power went")
        asked.append(sorted(exclude))
        return 100 - 2 * ("/4/Conv" in exclude) + ("/2/Conv" in exclude), 50

    monkeypatch.setattr("hqp_lightning.shipping.placing.missing", lambda: None)
    monkeypatch.setattr("hqp_lightning.shipping.placing.compiled_cost", cost)
    torch.manual_seed(0)
    model = Classifier()
    layers = [nn.Conv2d(3, 16, 4), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten()]
    model.net = nn.Sequential(*layers, nn.Linear(16, 10))
    data = DataLoader(TensorDataset(torch.randn(32, 3, 8, 8), torch.arange(32) % 10), 16)
    common = {"calibration_batches": 2, "engines": ["onnxruntime"], "latency_runs": 2, "threads": 1}
    callback = Int8Export(tmp_path, "val_acc", 0.99, placement="compiled", **common)
    with pytest.raises(OSError, match="the power went"):
        make_trainer(1, [callback]).fit(model, data, data)
    assert not (tmp_path / "model.int8.onnx").exists()
    before, asked[:] = list(asked), []
    report = Int8Export(tmp_path, placement="compiled", **common).export(model, data, data)
    assert len(before) == 3
    assert asked
    assert not [e for e in asked if e in before]
    left = {q.layer for q in report.quantization if q.precision == "float"}
    assert left == {"/4/Conv", "/6/Gemm"}  # what saves a kernel, and the head by rule


def test_what_the_compiler_refuses_is_a_note(compiler, run):
    report, _ = run(rtx=("8.7",))
    assert not report.compiled
    said = [n for n in report.notes if "does not compile for compute capability 8.7" in n]
    assert [n.split(" engine")[0] for n in said] == ["No dense fp16", "No pruned fp16", "No pruned int8"]


def test_without_the_compiler_it_is_one_note(run):
    report, folder = run()
    assert not report.compiled
    assert report.notes.count("no compiler in this test") == 1
    assert "engines" not in json.loads((folder / "manifest.json").read_text())


def test_no_list_of_capabilities_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"rtx='8.6': expected a list such as \['8.6', '8.9', '12.0'\]"):
        Int8Export(tmp_path, rtx="8.6")
    with pytest.raises(ConfigurationError, match="compute capability 'sm_86'"):
        Int8Export(tmp_path, rtx=["sm_86"])
