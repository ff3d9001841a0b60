"""Building on doubles of five releases: which calls are made, which form is taken, and what is said on failure."""

import json
import sys
from pathlib import Path

import onnx
import pytest
from tensorrt_doubles import PLAN, RELEASES, new, put, tensorrt

from hqp_lightning.board.build import build_plan
from hqp_lightning.board.library import import_tensorrt
from hqp_lightning.board.provenance import source_for
from hqp_lightning.errors import ExportError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "tensorrt_names"
LAYERS = ["/0/Conv", "/2/Conv", "/4/Gemm"]


@pytest.mark.parametrize("release", RELEASES)
def test_plugins_are_registered(release, monkeypatch):
    # Of the real 8.5.3.1: InstanceNormalization_TRT is in its registry after this call, and not before.
    trt = tensorrt(release)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    assert import_tensorrt() is trt
    assert trt.calls == [(".init_libnvinfer_plugins", [None, ""])]


def test_a_release_before_8_5_is_refused(monkeypatch):
    trt = tensorrt("8.5.3.1")
    del trt.IExecutionContext.execute_async_v3  # JetPack 5.0 has 8.4
    trt.__version__ = "8.4.1"
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    with pytest.raises(ExportError, match=r"TensorRT 8.4.1 is too old: 8.5 is the first .*JetPack 5.1"):
        import_tensorrt()


@pytest.mark.parametrize("content", [None, "", "import ctypes\nctypes.CDLL('libnothing.so.9')"])
def test_what_is_no_tensorrt_is_not_taken_for_one(content, tmp_path, monkeypatch):
    """The export's own folder tensorrt/ on the path (PYTHONPATH with a trailing colon), a broken installation."""
    (tmp_path / "tensorrt").mkdir()
    if content is not None:
        (tmp_path / "tensorrt" / "__init__.py").write_text(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(ExportError, match="no TensorRT for this Python .*sudo apt install"):
        import_tensorrt()
    sys.modules.pop("tensorrt", None)


def _source(trt, exported, precision):
    return source_for(trt, exported / ("model.int8.onnx" if precision == "int8" else "model.onnx"), precision)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_build_uses_only_what_the_release_has(release, precision, exported, tmp_path):
    trt = tensorrt(release)
    flagged = hasattr(trt.BuilderFlag, "FP16")
    source, cache = _source(trt, exported, precision), tmp_path / "timing.cache"
    plan, asked = build_plan(trt, source, precision, batch_size=4, timing_cache=cache)
    assert plan.endswith(source.read_bytes())
    assert asked == (LAYERS if precision == "int8" else [])
    assert cache.read_bytes() == b"timings"
    expected = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision] if flagged else []
    assert [flag.name for (flag,) in _named(trt, "IBuilderConfig.set_flag")] == expected
    tf32 = [flag.name for (flag,) in _named(trt, "IBuilderConfig.clear_flag")]
    assert tf32 == (["TF32"] if precision == "fp32" else [])
    assert _named(trt, "OnnxParser.parse") == [[source.read_bytes(), str(source)]]
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    assert _named(trt, "Builder.create_network") == [[0 if explicit is None else 1 << explicit]]
    assert _named(trt, "IOptimizationProfile.set_shape") == [["input", *((n, 3, 8, 8) for n in (1, 4, 32))]]
    assert len(_named(trt, "IBuilderConfig.add_optimization_profile")) == 1
    assert not [name for name, _ in trt.calls if "tactic" in name.lower()]


def _named(trt, name):
    return [args for called, args in trt.calls if called == name]


@pytest.mark.parametrize(
    ("release", "int8", "fp16"),
    [
        ("8.5.3.1", "tensorrt/model.int8.trt8.onnx", "model.onnx"),
        ("8.6.0", "tensorrt/model.int8.trt8.onnx", "model.onnx"),
        ("10.3.0", "model.int8.onnx", "model.onnx"),
        ("10.16.1.11", "model.int8.onnx", "model.onnx"),
        ("11.4.0.106", "tensorrt/model.int8.fp16.onnx", "tensorrt/model.fp16.onnx"),
    ],
)
def test_every_release_gets_its_form(release, int8, fp16, exported, tmp_path):
    trt = tensorrt(release)
    assert _source(trt, exported, "int8") == exported / int8
    assert _source(trt, exported, "fp16") == exported / fp16
    assert _source(trt, exported, "fp32") == exported / "model.onnx"
    assert source_for(trt, exported / int8, "int8") == exported / int8
    (tmp_path / "model.int8.onnx").write_bytes(b"")
    alone = tmp_path / "model.int8.onnx"
    if release.startswith("8"):
        with pytest.raises(ExportError, match="only in the form tensorrt/model.int8.trt8.onnx"):
            source_for(trt, alone, "int8")
    else:
        assert source_for(trt, alone, "int8") == alone


@pytest.mark.parametrize("release", RELEASES)
def test_a_foreign_timing_cache_is_replaced(release, exported, tmp_path):
    seen = []

    def create(self, data):
        seen.append(bytes(data))
        return data

    trt = tensorrt(
        release,
        IBuilderConfig__create_timing_cache=create,
        IBuilderConfig__set_timing_cache=lambda self, cache, ignore_mismatch: cache == b"",
    )
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"other machine")
    build_plan(trt, exported / "model.onnx", "fp32", timing_cache=cache)
    assert seen == [b"other machine", b""]
    assert cache.read_bytes() == b"timings"


def _complaining(release, severity, *messages):
    """A TensorRT that reports ``messages`` when it builds, and fails."""

    def start(self, logger):
        put(self, reports=logger)

    def fail(self, network, config):
        for message in messages:
            self.reports.log(getattr(trt.ILogger, severity), message)

    trt = tensorrt(release, Builder____init__=start, Builder__build_serialized_network=fail)
    return trt


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("severity", "message", "expected"),
    [
        (
            "ERROR",
            "[defaultAllocator.cpp] Requested amount of GPU memory; Cuda Runtime (out of memory)",
            "smaller --max-batch",
        ),
        ("ERROR", "Error Code 2: OutOfMemory (Requested size was 1 bytes.)", "smaller --max-batch"),
        ("ERROR", "CUDA initialization failure with error: 35", "driver is too old"),
        ("WARNING", "CUDA initialization failure with error: 35", "driver is too old"),
        (
            "ERROR",
            "no implementation for node Foo",
            r"could not build .*model.onnx as fp32: no implementation for node",
        ),
        ("INFO", "all is well", "gave no reason"),
    ],
)
def test_a_failed_build_says_why(release, severity, message, expected, exported, capsys):
    with pytest.raises(ExportError, match=expected):
        build_plan(_complaining(release, severity, message), exported / "model.onnx", "fp32")
    assert not capsys.readouterr().err  # it is in the error
    with pytest.raises(ExportError, match=expected):
        build_plan(_complaining(release, severity, message), exported / "model.onnx", "fp32", verbose=True)
    assert message in capsys.readouterr().err


def test_too_little_memory_for_any_kernel_is_told(exported):
    # As Jetsons log it: the error names a node alone, the warnings before (with a line break, misspelt) the reason.
    short = (
        "Tactic Device request: 538MB Available: 166MB. Device memory is insufficient to use tactic.",
        "Skipping tactic 3 due to insuficient memory on requested size of 538 detected for tactic 4.\nTry decreasing "
        "the workspace size with IBuilderConfig::setMaxWorkspaceSize().",
    )
    failed = "Error Code 10: Internal Error (Could not find any implementation for node /0/Conv.)"

    def start(self, logger):
        put(self, reports=logger)

    def build(warnings, error):
        def fail(self, network, config):
            for text in warnings:
                self.reports.log(trt.ILogger.WARNING, text)
            if error:
                self.reports.log(trt.ILogger.ERROR, error)

        trt = tensorrt("8.5.3.1", Builder____init__=start, Builder__build_serialized_network=fail)
        with pytest.raises(ExportError) as raised:
            build_plan(trt, exported / "model.onnx", "fp32")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    for warning in short:
        assert "GPU out of memory: stop other programs" in build([warning], failed)
        assert "GPU out of memory" in build([warning], None)
    assert "memory" not in build([], failed)
    assert "memory" not in build(short, "Error Code 4: a weight is not finite")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("where", ["log", "monitor"])
def test_ctrl_c_ends_the_build(release, where, exported, tmp_path, monkeypatch, capsys):
    """The binding prints what a callback raises and goes on (seen on the real 8.5.3.1), so Ctrl-C was lost."""

    class Pressed:
        def isatty(self):
            return where == "monitor"

        def write(self, text):
            raise KeyboardInterrupt

        def flush(self):
            pass

    def start(self, logger):
        put(self, reports=logger)

    def build(self, network, config):
        steps = [True]
        if where == "log":
            self.reports.log(trt.ILogger.INFO, "tactic 1")
        if hasattr(config, "progress_monitor"):
            config.progress_monitor.phase_start("Building", None, 2)
            steps = [config.progress_monitor.step_complete("Building", k) for k in range(2)]
        return PLAN if all(steps) else None

    trt = tensorrt(release, Builder____init__=start, Builder__build_serialized_network=build)
    cache = tmp_path / "timing.cache"
    monkeypatch.setattr(sys, "stderr", Pressed())
    if where == "monitor" and "IProgressMonitor" not in RELEASES[release]:
        pytest.skip("no monitor in this release")
    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, exported / "model.onnx", "fp32", timing_cache=cache, verbose=where == "log")
    assert not cache.exists()


def test_a_builder_that_does_not_start_says_why(exported):
    def start(self, logger):
        logger.log(trt.ILogger.WARNING, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt = tensorrt("8.5.3.1", Builder____init__=start)
    with pytest.raises(ExportError, match=r"TensorRT 8.5.3.1 cannot start: the driver is too old"):
        build_plan(trt, exported / "model.onnx", "fp32")


@pytest.mark.parametrize("release", RELEASES)
def test_an_unsupported_operator_is_named(release, exported):
    def parse(self, data, path=None):
        put(self, num_errors=1)
        return False

    def error(self, index):
        return new(trt, "ParserError")

    said = {
        "ParserError__desc": lambda self: "No importer registered for op: Foo",
        "ParserError__code": lambda self: trt.ErrorCode.UNSUPPORTED_NODE,
    }
    if "node_name" in RELEASES[release]["ParserError"]:
        said |= {"ParserError__node_name": lambda self: "/9/Foo", "ParserError__node_operator": lambda self: "Foo"}
    trt = tensorrt(release, OnnxParser__parse=parse, OnnxParser__get_error=error, **said)
    where = "Foo /9/Foo: " if len(said) > 2 else ""
    with pytest.raises(ExportError, match=rf"an operator that this release does not have.*\({where}No importer"):
        build_plan(trt, exported / "model.onnx", "fp32")


def _fixed_batch(graph):
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _dynamic_height(graph):
    graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def _a_second_input_without_batch(graph):
    graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1, 8]))


@pytest.mark.parametrize("change", [_fixed_batch, _dynamic_height, _a_second_input_without_batch])
def test_a_model_of_another_form_is_refused_before_the_build(change, exported, tmp_path):
    model, trt = onnx.load(exported / "model.onnx"), tensorrt("10.3.0")
    change(model.graph)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="expected inputs of which the batch alone is dynamic, and an output"):
        build_plan(trt, tmp_path / "model.onnx", "fp32")
    assert not _named(trt, "Builder.build_serialized_network")


@pytest.mark.parametrize("release", RELEASES)
def test_progress_is_shown_on_a_terminal(release, exported, monkeypatch, capsys):
    seen = []

    def build(self, network, config):
        monitor = config.progress_monitor if hasattr(config, "progress_monitor") else None
        seen.append(monitor)
        if monitor is not None:
            monitor.phase_start("Building", None, 4)
            assert monitor.step_complete("Building", 0) is True
            monitor.phase_finish("Building")
        return PLAN

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    build_plan(tensorrt(release, Builder__build_serialized_network=build), exported / "model.onnx", "fp32")
    assert (seen[0] is not None) == ("IProgressMonitor" in RELEASES[release])
    assert ("Building: 1/4" in capsys.readouterr().err) == (seen[0] is not None)


def test_the_doubles_refuse_what_a_release_lacks():
    """The guard itself: without it the tests above would prove nothing."""
    old, recent = tensorrt("8.5.3.1"), tensorrt("11.4.0.106")
    assert not hasattr(recent.BuilderFlag, "INT8")
    assert not hasattr(old.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    assert not hasattr(old, "IProgressMonitor")
    with pytest.raises(TypeError, match="incompatible arguments"):
        old.Builder(None).create_network(0, strongly_typed=True)
    with pytest.raises(TypeError, match="incompatible arguments"):
        new(old, "IBuilderConfig").set_timing_cache(None)
    with pytest.raises(AttributeError, match="no property"):
        new(old, "IBuilderConfig").progress_monitor = 1
    with pytest.raises(AttributeError):
        new(recent, "Builder").build_engine()


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/tensorrt_names is not there")
def test_the_fixture_is_what_the_bindings_say():
    for release, classes in RELEASES.items():
        names = json.loads((SHARED / f"{release}.json").read_text())["names"]
        for cls, members in classes.items():
            assert {k: names[cls][k] for k in members} == members
