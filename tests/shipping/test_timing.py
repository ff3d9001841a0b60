"""Every engine that could be deployed is timed and scored; clocks are stubs, scores are compared with onnxruntime."""

import importlib.util
import sys

import numpy as np
import pytest
from classifier import Classifier, accuracy_by_hand
from tensorrt_doubles import _ANSWERS, Driver, named, put, tensorrt

from hqp_lightning import Int8Export
from hqp_lightning.board import cuda
from hqp_lightning.board.engine import LoadedEngine
from hqp_lightning.errors import ExportError
from hqp_lightning.export.engines import Engine

OUT_OF_MEMORY = "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (no further information)"


@pytest.fixture
def here(monkeypatch):
    """TensorRT's double and a GPU; ``milliseconds`` of a call by the engine's precision."""

    def put(release, milliseconds, **behaviour):
        trt, find = tensorrt(release, **behaviour), importlib.util.find_spec
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: object() if n == "tensorrt" else find(n, *a))
        driver = Driver()
        monkeypatch.setattr(cuda, "_load", lambda: driver)
        monkeypatch.setattr(LoadedEngine, "latency_ms", lambda self, _: milliseconds[self.name.split(".")[-2]])
        return trt

    return put


@pytest.fixture
def export(make_trainer, loaders, tmp_path):
    def run(**options):
        callback = Int8Export(tmp_path, "val_acc", 0.2, latency_runs=2, threads=1, max_float_layers=0, **options)
        make_trainer(3, [callback]).fit(Classifier(), *loaders)
        return callback.report

    return run


@pytest.mark.parametrize("release", ["8.5.3.1", "11.4.0.106"])
def test_fp16_and_int8_are_built_scored_and_the_fastest_is_named(release, here, export, digits, tmp_path):
    trt = here(release, {"fp32": 4.0, "fp16": 1.0, "int8": 2.0})
    report = export(engines=["tensorrt"], batch_size=4)
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    rows = {(e.model, e.precision): e for e in report.engines}
    assert list(rows) == [("dense", "fp32"), ("pruned", "fp32"), ("pruned", "fp16"), ("pruned", "int8")]
    assert rows["dense", "fp32"].accuracy is None
    exact = accuracy_by_hand(tmp_path / "model.onnx", x, y)
    assert rows["pruned", "fp32"].accuracy == pytest.approx(exact, abs=1e-6)
    assert rows["pruned", "fp16"].accuracy == pytest.approx(exact, abs=0.011)  # in float16 two images may differ
    assert rows["pruned", "int8"].accuracy == report.int8.accuracy
    assert [e.images_per_s for e in report.engines] == [1000, 1000, 4000, 2000]  # 4 images in 4, 4, 1 and 2 ms
    assert report.fastest_within_budget == rows["pruned", "fp16"]
    # the INT8 engine that was scored is the one that is timed: it is not built a second time
    assert len(named(trt, "Builder.build_serialized_network")) == 4
    assert (tmp_path / report.fastest_within_budget.path).read_bytes().startswith(b"PLAN")


def failing(after):
    """Answers of a TensorRT that builds so many engines, and is then out of memory."""
    builds = []

    def start(self, logger):
        put(self, logger=logger)

    def build(self, network, config):
        builds.append(network)
        if len(builds) > after:
            self.logger.log(self.module.ILogger.ERROR, OUT_OF_MEMORY)
            return None
        return _ANSWERS["Builder", "build_serialized_network"](self, network, config)

    return {"Builder____init__": start, "Builder__build_serialized_network": build}


def test_an_engine_that_cannot_be_built_is_left_out_with_its_reason(here, export):
    here("10.3.0", {"fp32": 4.0, "int8": 2.0}, **failing(after=3))  # INT8, dense and pruned in FP32
    report = export(engines=["tensorrt"])
    assert [(e.model, e.precision) for e in report.engines] == [
        ("dense", "fp32"),
        ("pruned", "fp32"),
        ("pruned", "int8"),
    ]
    (note,) = [n for n in report.notes if "left out" in n]
    assert note.startswith(
        "The tensorrt engine of the pruned model in fp16 is left out: TensorRT 10.3.0 could not build"
    )
    assert "GPU out of memory" in note
    assert report.fastest_within_budget.precision == "int8"


def test_without_a_working_tensorrt_the_run_still_ends_with_a_scored_int8_file(
    here, export, digits, monkeypatch, tmp_path
):
    here("10.3.0", {}, **failing(after=0))
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: None if n == "openvino" else find(n, *a))
    report = export()
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    assert {e.backend for e in report.engines} == {"onnxruntime"}
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.int8.onnx", x, y), abs=1e-6)
    (note,) = [n for n in report.notes if n.startswith("No tensorrt engine: ")]
    assert "GPU out of memory" in note
    assert (tmp_path / "manifest.json").is_file()


def test_who_asked_for_tensorrt_alone_is_told_why_it_failed(here, export, tmp_path):
    here("10.3.0", {}, **failing(after=0))
    with pytest.raises(ExportError, match="GPU out of memory"):
        export(engines=["tensorrt"])
    assert (tmp_path / "model.int8.onnx").is_file()  # to be built elsewhere


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("faster", ["fp32", "int8"])
def test_on_a_cpu_the_pruned_float_model_may_be_the_faster_one(backend, faster, export, digits, monkeypatch, tmp_path):
    if backend == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setattr(Engine, "latency_ms", lambda self, _: 1.0 if self.precision == faster else 2.0)
    report = export(engines=[backend])
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    best = report.fastest_within_budget
    assert (best.backend, best.model, best.precision, best.latency_ms.median) == (backend, "pruned", faster, 1.0)
    assert best.images_per_s == 1000
    assert best.accuracy == pytest.approx(accuracy_by_hand(tmp_path / best.path, x, y), abs=0.006)
    scored = {e.precision for e in report.engines if e.accuracy is not None}
    assert scored - {"bf16", "int8+bf16"} == {"fp32", "int8"}  # those are OpenVINO's, where the processor has bfloat16
    assert {e.precision for e in report.engines if e.model == "dense"} == {"fp32"}
    assert np.isfinite([e.images_per_s for e in report.engines]).all()
