"""The TensorRT backend on doubles of five releases, against onnxruntime on the same file."""

import json
import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import sessions
import torch
from tensorrt_doubles import RELEASES, Driver, named, tensorrt
from torch import nn

from hqp_lightning.board import cuda
from hqp_lightning.errors import ExportError
from hqp_lightning.export import collect_ranges, quantize
from hqp_lightning.export.engines import TensorRTBackend, latencies
from hqp_lightning.export.onnx import export_onnx


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tensorrt")
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    path = folder / "model.onnx"
    export_onnx(module, torch.zeros(1, 3, 8, 8), path)
    batch = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    quantize(path, collect_ranges(path, [batch], threads=1), folder / "model.int8.onnx")
    return path, folder / "model.int8.onnx"


@pytest.fixture
def here(monkeypatch):
    def put(release):
        trt, lib = tensorrt(release), Driver()
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        monkeypatch.setattr(cuda, "_load", lambda: lib)
        return trt, lib

    return put


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_backend_builds_runs_and_closes(release, precision, models, here, tmp_path):
    trt, lib = here(release)
    source = models[precision == "int8"]
    engine = TensorRTBackend().build(source, precision, tmp_path / "engines", threads=2, batch_size=4)
    assert (engine.backend, engine.precision, engine.device, engine.threads) == ("tensorrt", precision, "Orin", 0)
    path = Path(engine.path)
    assert path.read_bytes().startswith(b"PLAN")
    note = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert (note["tensorrt"], note["gpu"]["compute_capability"]) == (release, "8.7")
    layers = json.loads((tmp_path / "engines" / f"{source.stem}.{precision}.layers.json").read_text())["Layers"]
    assert len(layers) == 3

    batch = np.random.default_rng(1).normal(size=(70, 3, 8, 8)).astype(np.float32)  # more than the profile takes
    session = sessions.session(source)
    expected = session.run(None, {"input": batch})[0]
    exact = 1e-6 if "FP16" in RELEASES[release]["BuilderFlag"] or precision == "fp32" else 0.02  # the float16 form
    np.testing.assert_allclose(engine.run(batch), expected, atol=exact * np.abs(expected).max())
    shapes = [shape[0] for _, shape in named(trt, "IExecutionContext.set_input_shape")]
    assert shapes == [4, 32, 32, 6]  # the inspector's, then the parts

    times = latencies({"a": engine, "b": engine}, batch[:4], warmup=1, runs=3)
    assert times["a"].median == times["b"].median == 0.5  # the driver's clock, not this machine's
    with pytest.raises(ExportError, match=r"batch of shape \(4, 3, 8, 9\)"):
        engine.run(np.zeros((4, 3, 8, 9), np.float32))
    engine.close()
    engine.close()
    assert not lib.buffers
    with pytest.raises(ExportError, match="closed"):
        engine.run(batch)


def test_a_layer_that_fell_back_is_warned_of(models, here, tmp_path, caplog):
    trt, _ = here("10.3.0")
    trt.float_layers.add("/2/Conv")
    with caplog.at_level(logging.WARNING):
        TensorRTBackend().build(models[1], "int8", tmp_path)
    assert [r.getMessage() for r in caplog.records] == ["hqp: TensorRT runs /2/Conv + Relu in FP16, not in INT8"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absence_is_one_clear_line(models, tmp_path):
    reason = TensorRTBackend().unavailable()
    assert reason.startswith("TensorRT skipped: ")
    assert "\n" not in reason
    with pytest.raises(ExportError, match="TensorRT skipped"):
        TensorRTBackend().build(models[0], "fp32", tmp_path)


@pytest.mark.parametrize(
    ("code", "package", "expected"),
    [
        (None, True, "no NVIDIA driver on this machine"),
        (100, True, "cuInit returned 100"),
        (0, False, "pip install"),
        (0, True, None),
    ],
)
def test_probe_asks_the_driver_first(code, package, expected, monkeypatch):
    def load():
        if code is None:
            raise OSError("libcuda.so.1")
        return types.SimpleNamespace(cuInit=lambda flags: code)

    monkeypatch.setattr(cuda, "_load", load)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if package else None)
    reason = TensorRTBackend().unavailable()
    assert reason is None if expected is None else expected in reason
