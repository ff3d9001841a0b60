"""Runtimes on this machine's CPU against torch, and the timing loop against a clock that we drive."""

import re

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.export import collect_ranges, latency, quantize
from hqp_lightning.export import engines as engines_module
from hqp_lightning.export.engines import OnnxRuntimeBackend, OpenVINOBackend, base, latencies, openvino
from hqp_lightning.export.onnx import export_onnx
from hqp_lightning.shipping.timing import usable_backends


def _ready(backend):
    reason = backend.unavailable()
    return pytest.param(backend, id=backend.name, marks=pytest.mark.skipif(reason is not None, reason=reason or ""))


CPU = [_ready(OnnxRuntimeBackend()), _ready(OpenVINOBackend())]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("engines")
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    path = folder / "model.onnx"
    export_onnx(module, torch.zeros(1, 3, 16, 16), path)
    calibration = [np.random.default_rng(0).normal(size=(16, 3, 16, 16)).astype(np.float32)]
    int8 = quantize(path, collect_ranges(path, calibration, threads=1), folder / "model.int8.onnx")
    return module, path, int8.path


@pytest.mark.parametrize("backend", CPU)
def test_float_engine_is_float32_at_any_batch_size(backend, model, tmp_path):
    module, path, _ = model
    with backend.build(path, "fp32", tmp_path, threads=1, batch_size=2) as engine:
        for size in (2, 1, 5, 2):
            batch = torch.randn(size, 3, 16, 16)
            with torch.no_grad():
                expected = module(batch).numpy()
            # bfloat16 would be off by some 1e-3
            np.testing.assert_allclose(engine.run(batch.numpy()), expected, atol=1e-5)
        assert (engine.backend, engine.precision, engine.threads, engine.path) == (backend.name, "fp32", 1, str(path))
        assert engine.device
    with pytest.raises(ExportError, match="closed: build it again"):
        engine.run(batch.numpy())
    engine.close()


@pytest.mark.parametrize("backend", CPU)
def test_int8_engine_follows_the_float_model(backend, model, tmp_path):
    module, _, path = model
    with backend.build(path, "int8", tmp_path, threads=1) as engine:
        batch = torch.randn(64, 3, 16, 16)
        got = engine.run(batch.numpy())
    expected = module(batch).detach().numpy()
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert np.abs(got - expected).max() > 1e-6  # it is not the float model


@pytest.mark.parametrize("backend", CPU)
def test_arrays_of_any_layout_are_read_and_left_as_they_are(backend, model, tmp_path):
    module, path, _ = model
    plain = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    fixed = plain.copy()
    fixed.flags.writeable = False
    channels_last = np.ascontiguousarray(plain.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = module(torch.from_numpy(plain)).numpy()
    with backend.build(path, "fp32", tmp_path, threads=1, batch_size=2) as engine:
        for given in (plain, fixed, channels_last, plain.astype(np.float64)):
            before = given.copy()
            np.testing.assert_allclose(engine.run(given), expected, atol=1e-5)
            np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("backend", CPU)
def test_results_do_not_share_a_buffer(backend, model, tmp_path):
    with backend.build(model[1], "fp32", tmp_path, threads=1) as engine:
        first = engine.run(np.zeros((1, 3, 16, 16), np.float32))
        kept = first.copy()
        engine.run(np.ones((1, 3, 16, 16), np.float32))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("backend", CPU)
def test_a_batch_of_another_shape_is_told_with_the_one_that_is_expected(backend, model, tmp_path):
    with backend.build(model[1], "fp32", tmp_path, threads=1) as engine:
        for shape in ((1, 3, 15, 16), (3, 16, 16)):
            with pytest.raises(
                ExportError, match=re.escape(f"the batch has shape {shape}, expected (batch, 3, 16, 16)")
            ):
                engine.run(np.zeros(shape, np.float32))
        with pytest.raises(ExportError, match="2 arrays in a batch, expected one for each input"):
            engine.run((np.zeros((1, 3, 16, 16), np.float32),) * 2)
        for strange, kind in (([[1.0]], "list"), (None, "NoneType")):
            with pytest.raises(ExportError, match=f"a batch is an array, .* got {kind}"):
                engine.run(strange)
        assert engine.run(np.zeros((1, 3, 16, 16), np.float32)).shape[0] == 1  # goes on


@pytest.mark.parametrize("backend", CPU)
def test_an_int8_engine_of_a_float_file_says_so(backend, model, tmp_path, caplog):
    backend.build(model[2], "int8", tmp_path).close()
    assert not caplog.messages
    backend.build(model[1], "int8", tmp_path).close()
    assert caplog.messages == [
        f"hqp: {model[1]} holds no quantizers: as int8 it computes in float (hqp-int8 quantizes it)"
    ]


@pytest.mark.parametrize("backend", CPU)
def test_an_empty_file_is_told_in_a_line(backend, tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ExportError) as told:
        backend.build(tmp_path / "model.onnx", "fp32", tmp_path)
    assert str(told.value) == f"{backend.name} engine: {tmp_path / 'model.onnx'} is empty: export the model again"


@pytest.mark.parametrize("backend", CPU)
def test_clear_errors(backend, model, tmp_path):
    with pytest.raises(ConfigurationError, match="'fp16', expected one of"):
        backend.build(model[1], "fp16", tmp_path)
    with pytest.raises(ConfigurationError, match="threads=0"):
        backend.build(model[1], "fp32", tmp_path, threads=0)
    with pytest.raises(ExportError, match="no ONNX file"):
        backend.build(tmp_path / "absent.onnx", "fp32", tmp_path)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match=f"{backend.name} could not build") as caught:
        backend.build(tmp_path / "text.onnx", "fp32", tmp_path)
    assert caught.value.__cause__ is not None


def test_missing_openvino_says_how_to_get_it(monkeypatch, model, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'hqp-lightning[openvino]'" in OpenVINOBackend().unavailable()
    with pytest.raises(ExportError, match="OpenVINO skipped"):
        OpenVINOBackend().build(model[1], "fp32", tmp_path)


def test_preference_and_lazy_imports():
    assert [b.name for b in engines_module.backends()] == ["tensorrt", "openvino", "onnxruntime"]


class _Clockwork(base.Engine):
    """Advances a clock that we drive by its given times, and records the turn order."""

    def __init__(self, name, times, clock, order):
        super().__init__(name, "fp32", "none", 1, "none")
        self.times, self.clock, self.order = iter(times), clock, order

    def run(self, batch):
        self.order.append(self.backend)
        self.clock[0] += next(self.times)
        return batch

    def close(self):
        pass


def test_latencies_are_rows_in_turn_without_their_first_calls(monkeypatch):
    """An engine's first calls after another's find cold caches: none of them counts, in any turn."""
    clock, order = [0.0], []
    monkeypatch.setattr(base.time, "perf_counter", lambda: clock[0])
    fast = [t for k in range(0, 100, 10) for t in (9e-3, 9e-3, *(0.001 * j for j in range(k + 1, k + 11)))]
    slow = [t for _ in range(10) for t in (9.0, 9.0, *[0.5] * 10)]
    pair = {"f": _Clockwork("a", fast, clock, order), "s": _Clockwork("b", slow, clock, order)}
    got = latencies(pair, np.zeros(1), warmup=2, runs=100)
    turns = ["".join(order[k : k + 24]) for k in range(0, len(order), 24)]
    assert len(turns) == 10
    assert set(turns) == {"a" * 12 + "b" * 12, "b" * 12 + "a" * 12}  # no engine always follows the same one
    assert got["f"].median == pytest.approx(50.5)
    assert got["f"].p95 == pytest.approx(95.05)
    assert got["s"].median == pytest.approx(500.0)
    assert got["f"].runs == 100
    with pytest.raises(ConfigurationError, match="runs=0"):
        latencies(pair, np.zeros(1), runs=0)


def test_what_takes_long_is_not_warmed_up_for_long(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(base.time, "perf_counter", lambda: clock[0])
    engine = _Clockwork("a", [5.0, 0.02, 0.02, 0.02, 0.03, 0.03, 0.03], clock, order)  # the first call builds things
    got = latencies({"a": engine}, np.zeros(1), warmup=10, runs=3)
    assert len(order) == 7
    assert got["a"].median == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("cpuinfo", "name", "cautious"),
    [
        ("processor\t: 0\nmodel name\t: AMD Ryzen 7 5800X\nflags\t\t: fpu avx2 fma\n", "AMD Ryzen 7 5800X", True),
        ("model name\t: Intel Core i7-12700\nflags\t\t: avx2 avx_vnni\n", "Intel Core i7-12700", False),
        ("model name\t: AMD EPYC 9634\nflags\t\t: avx2 avx512_vnni\n", "AMD EPYC 9634", False),
        ("processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nFeatures\t: asimddp\n", "ARMv8 Processor", False),
    ],
)
def test_a_cpu_whose_int8_sums_saturate_is_told(cpuinfo, name, cautious, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(base, "_CPUINFO", tmp_path / "cpuinfo")
    assert base.processor_name().startswith(name)
    assert base.lacks_vnni() == cautious
    assert (OpenVINOBackend().caution() is not None) == cautious
    _, notes = usable_backends(("onnxruntime",), "int8")
    assert notes == []


@pytest.mark.skipif(OpenVINOBackend().unavailable() is not None, reason="OpenVINO is not installed")
def test_the_caution_reaches_the_notes(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("flags : avx2\n")
    monkeypatch.setattr(base, "_CPUINFO", tmp_path / "cpuinfo")
    (note,) = usable_backends(("openvino", "onnxruntime"), "uint8")[1]
    assert "without VNNI" in note


def test_bfloat16_is_offered_where_the_processor_has_it_and_is_not_float32(model, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    _, path, _ = model
    backend, batch = OpenVINOBackend(), np.random.default_rng(1).normal(size=(8, 3, 16, 16)).astype(np.float32)
    has = openvino._capabilities()
    if "BF16" in has:
        assert backend.offered() == ("fp32", "bf16", "int8", "int8+bf16")
        with (
            backend.build(path, "fp32", tmp_path, threads=1) as exact,
            backend.build(path, "bf16", tmp_path, threads=1) as coarse,
        ):
            difference = np.abs(coarse.run(batch) - exact.run(batch)).max()
        assert 1e-5 < difference < 0.05  # eight bits of a mantissa
    monkeypatch.setattr(openvino, "_capabilities", lambda: [c for c in has if c != "BF16"])
    assert backend.offered() == ("fp32", "int8")


def test_float_parts_of_int8_are_in_the_type_that_the_precision_names(model, tmp_path):
    runtime = pytest.importorskip("openvino")
    _, path, _ = model
    backend, batch = OpenVINOBackend(), np.random.default_rng(1).normal(size=(8, 3, 16, 16)).astype(np.float32)
    ranges = collect_ranges(path, [batch], threads=1)
    half = quantize(path, ranges, tmp_path / "half.onnx", exclude=[n.name for n in _convolutions(path)][1:]).path

    def alone(precision):  # the runtime, without our engine
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
        return runtime.Core().compile_model(half, "CPU", options)(batch)[0]

    for precision in [p for p in backend.offered() if p.startswith("int8")]:
        with backend.build(half, precision, tmp_path, threads=1, batch_size=8) as engine:
            np.testing.assert_array_equal(engine.run(batch), alone("bf16" if precision == "int8+bf16" else "f32"))
    if "int8+bf16" in backend.offered():
        assert 1e-5 < np.abs(alone("bf16") - alone("f32")).max() < 0.05


@pytest.mark.parametrize("backend", [OpenVINOBackend(), OnnxRuntimeBackend()], ids=lambda b: b.name)
def test_a_prepared_call_is_a_run_on_that_batch(model, tmp_path, backend):
    pytest.importorskip(backend.name)
    _, path, _ = model
    one, other = np.random.default_rng(1).normal(size=(2, 1, 3, 16, 16)).astype(np.float32)
    with backend.build(path, "fp32", tmp_path, threads=1, batch_size=1) as engine:
        wanted, call = engine.run(other), engine.prepared(one)
        call()
        first = engine.run(one)
        assert not np.array_equal(first, wanted)
        np.testing.assert_array_equal(engine.run(other), wanted)
        engine.prepared(np.concatenate([one, other]))()  # another size, compiled when it comes
        if backend.name == "openvino":
            with pytest.raises(ExportError, match="got another batch"):
                call()
    with pytest.raises(ExportError, match="is closed"):
        engine.prepared(one)()


def test_calls_that_a_clock_misses_are_no_times(monkeypatch):
    clock, calls = [0.0], []

    class Stub:
        def run(self, _):
            calls.append(len(calls))
            clock[0] += 1e-4 if len(calls) in (7, 50) else 2e-3 if len(calls) % 3 else 1e-3

        def prepared(self, batch):
            return lambda: self.run(batch)

    monkeypatch.setattr(latency.time, "process_time", lambda: clock[0])
    assert latency._in_turn([Stub()], [None], latency.How(), 20) == [pytest.approx(1.0)]


def _convolutions(path):
    return [n for n in onnx.load(path).graph.node if n.op_type == "Conv"]
