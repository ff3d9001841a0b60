"""TensorRT's build and run path against doubles made of the real names of five releases.

A class, member, keyword or overload that a release does not have raises here as it would there.
"""

import ctypes
import enum
import inspect
import json
import re
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hqp_lightning.errors import ExportError
from hqp_lightning.export.engines import TensorRTBackend
from hqp_lightning.export.engines import tensorrt as room
from hqp_lightning.export.onnx import export_onnx
from hqp_lightning.export.quantize import collect_ranges, quantize

TESTS = Path(__file__).parents[1]
RELEASES = json.loads((TESTS / "fixtures" / "tensorrt_names.json").read_text())["releases"]
SHARED = TESTS.parent / ".." / "shared" / "tensorrt_names"


def _split(text):
    """Split at commas outside brackets."""
    return [part.strip() for part in re.split(r",(?![^\[<(]*[\])>])", text) if part.strip()]


def _signatures(text):
    """``name(self: C, a: int, b: str = None) -> R``, or several of them behind ``| 1.`` -> (Signature, R)."""
    overloads = [t for t in re.split(r"\|\s*\d+\.\s*", text) if "*args" not in t]
    for overload in overloads:
        inside, _, returns = overload.partition("(")[2].rpartition(") -> ")
        parameters = []
        for part in _split(inside):
            name, _, rest = part.partition(":")
            default = None if "=" in rest else inspect.Parameter.empty
            parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
        yield inspect.Signature(parameters), re.split(r"[.:]", returns.strip())[-1]


def _method(module, cls, name, text, behaviour, calls):
    signatures = list(_signatures(text))

    def method(self, *args, **kwargs):
        for signature, returned in signatures:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError:
                continue
            given = list(bound.arguments.values())[1:]
            calls.append((f"{cls}.{name}", given))
            if (cls, name) in behaviour:
                return behaviour[cls, name](self, *given)
            known = [k for k in (returned, returned.removeprefix("I")) if hasattr(module, k)]
            return _new(getattr(module, known[0])) if known else True
        raise TypeError(f"{cls}.{name}: incompatible arguments {args} {kwargs}, expected {text}")

    return method


def _new(cls):
    return cls.__new__(cls)


def _double(release, behaviour):
    """A module with the names of one release; ``behaviour`` answers calls, which ``module.calls`` records."""
    calls = []
    module = types.SimpleNamespace(calls=calls)
    for cls, members in RELEASES[release].items():
        constants = [k for k, v in members.items() if v in ("member", "Severity")]
        if constants and "__init__" not in members:
            setattr(module, cls, enum.IntEnum(cls, constants, start=0))
            continue
        body = {k: k for k in constants}
        for name, text in members.items():
            if "->" in text:
                body[name] = _method(module, cls, name, text, behaviour, calls)
        properties = {k for k, v in members.items() if v == "property"}

        def set_known(self, key, value, _properties=properties, _cls=cls):
            if key not in _properties:
                raise AttributeError(f"{_cls} has no property {key}")
            calls.append((f"{_cls}.{key}", [value]))
            object.__setattr__(self, key, value)

        body["__setattr__"] = set_known
        setattr(module, cls, type(cls, (bytes,) if cls == "IHostMemory" else (), body))
    return module


def _host(module, content):
    return module.IHostMemory.__new__(module.IHostMemory, content)


def _runnable(release, behaviour=None):
    module = _double(
        release,
        {
            ("Builder", "build_serialized_network"): lambda self, network, config: _host(module, b"plan"),
            ("ITimingCache", "serialize"): lambda self: _host(module, b"timings"),
            ("EngineInspector", "get_engine_information"): lambda self, form: '{"Layers": []}',
            ("Builder", "__init__"): lambda self, logger: None,
            ("OnnxParser", "__init__"): lambda self, network, logger: None,
            ("Runtime", "__init__"): lambda self, logger: None,
            ("Logger", "__init__"): lambda self, severity: None,
            **(behaviour or {}),
        },
    )
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tensorrt")
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    path = folder / "model.onnx"
    export_onnx(module, torch.zeros(1, 3, 8, 8), path)
    batch = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    quantize(path, collect_ranges(path, [batch], threads=1), folder / "model.int8.onnx")
    return path, folder / "model.int8.onnx", batch


def _named(calls, name):
    return [args for called, args in calls if called == name]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_build_uses_only_what_the_release_has(release, precision, models, tmp_path):
    trt = _runnable(release)
    flagged = hasattr(trt.BuilderFlag, "FP16")
    cache = tmp_path / "timing.cache"
    if precision == "fp16" and not flagged:
        with pytest.raises(ExportError, match="no FP16 flag"):
            room.build_plan(trt, models[0], precision)
        return
    plan = room.build_plan(trt, models[precision == "int8"], precision, batch_size=4, timing_cache=cache)
    assert plan == b"plan"
    assert cache.read_bytes() == b"timings"
    expected = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision] if flagged else []
    assert [flag.name for (flag,) in _named(trt.calls, "IBuilderConfig.set_flag")] == expected
    tf32 = [flag.name for (flag,) in _named(trt.calls, "IBuilderConfig.clear_flag")]
    assert tf32 == (["TF32"] if precision == "fp32" else [])
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    assert _named(trt.calls, "Builder.create_network") == [[0 if explicit is None else 1 << explicit]]
    sizes = [(n, 3, 8, 8) for n in (1, 4, 32)]
    assert _named(trt.calls, "IOptimizationProfile.set_shape") == [["input", *sizes]]
    assert len(_named(trt.calls, "IBuilderConfig.add_optimization_profile")) == 1


@pytest.mark.parametrize("release", RELEASES)
def test_a_foreign_timing_cache_is_replaced(release, models, tmp_path):
    seen = []

    def create(self, data):
        seen.append(bytes(data))
        return data

    answers = {
        ("IBuilderConfig", "create_timing_cache"): create,
        ("IBuilderConfig", "set_timing_cache"): lambda self, cache, ignore_mismatch: cache == b"",
    }
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"other machine")
    room.build_plan(_runnable(release, behaviour=answers), models[0], "fp32", timing_cache=cache)
    assert seen == [b"other machine", b""]
    assert cache.read_bytes() == b"timings"


@pytest.mark.parametrize("release", RELEASES)
def test_failures_are_clear(release, models):
    failing = {("Builder", "build_serialized_network"): lambda self, *args: None}
    with pytest.raises(ExportError, match="could not build"):
        room.build_plan(_runnable(release, behaviour=failing), models[0], "fp32")
    failing = {
        ("OnnxParser", "parse"): lambda self, model, path=None: object.__setattr__(self, "num_errors", 1),
        ("OnnxParser", "get_error"): lambda self, index: _new(trt.ParserError),
        ("ParserError", "desc"): lambda self: "node of type Foo",
    }
    trt = _runnable(release, behaviour=failing)
    with pytest.raises(ExportError, match="cannot parse .*: node of type Foo"):
        room.build_plan(trt, models[0], "fp32")


@pytest.mark.parametrize("release", RELEASES)
def test_backend_builds_runs_and_closes(release, models, tmp_path, monkeypatch):
    """The context reads and writes the very addresses that it was given."""
    shape, address = {}, {}

    def set_shape(self, name, value):
        shape[name] = value
        return True

    def set_address(self, name, value):
        address[name] = value
        return True

    def execute(self, stream):
        count = int(np.prod(shape["input"]))
        source = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address["input"]))
        target = np.ctypeslib.as_array((ctypes.c_float * (shape["input"][0] * 10)).from_address(address["logits"]))
        target[:] = (2 * source.reshape(shape["input"][0], -1)[:, :10]).ravel()
        return stream == 7

    trt = _runnable(
        release,
        behaviour={
            ("IExecutionContext", "set_input_shape"): set_shape,
            ("IExecutionContext", "set_tensor_address"): set_address,
            ("IExecutionContext", "get_tensor_shape"): lambda self, name: (shape["input"][0], 10),
            ("IExecutionContext", "execute_async_v3"): execute,
        },
    )

    @contextmanager
    def stream():
        yield types.SimpleNamespace(cuda_stream=7)

    monkeypatch.setitem(__import__("sys").modules, "tensorrt", trt)
    monkeypatch.setattr(room, "_DEVICE", "cpu")
    monkeypatch.setattr(room, "_stream", stream)
    monkeypatch.setattr(room, "_device_name", lambda: "a GPU")
    monkeypatch.setattr(TensorRTBackend, "unavailable", lambda self: None)
    engine = TensorRTBackend().build(models[1], "int8", tmp_path / "engines", threads=2, batch_size=4)
    assert (engine.backend, engine.precision, engine.device, engine.threads) == ("tensorrt", "int8", "a GPU", 0)
    assert Path(engine.path).read_bytes() == b"plan"
    assert json.loads((tmp_path / "engines" / "model.int8.int8.layers.json").read_text()) == {"Layers": []}
    batch = np.random.default_rng(1).normal(size=(70, 3, 8, 8)).astype(np.float32)  # more than the profile takes
    np.testing.assert_array_equal(engine.run(batch), 2 * batch.reshape(70, -1)[:, :10])
    assert [args[1][0] for args in _named(trt.calls, "IExecutionContext.set_input_shape")] == [32, 32, 6]
    engine.close()
    with pytest.raises(ExportError, match="closed"):
        engine.run(batch)


def test_the_doubles_refuse_what_a_release_lacks():
    """The guard itself: without it the tests above would prove nothing."""
    old, new = _runnable("8.5.3.1"), _runnable("11.4.0.106")
    assert not hasattr(new.BuilderFlag, "INT8")
    assert not hasattr(old.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    with pytest.raises(TypeError, match="incompatible arguments"):
        old.Builder(old.Logger(old.Logger.WARNING)).create_network(0, strongly_typed=True)
    with pytest.raises(TypeError, match="incompatible arguments"):
        _new(old.IBuilderConfig).set_timing_cache(None)
    with pytest.raises(AttributeError, match="no property"):
        _new(old.IBuilderConfig).max_workspace = 1
    with pytest.raises(AttributeError):
        _new(new.Builder).build_engine()


def test_float_weights_compute_the_same(models):
    _, path, batch = models
    model = onnx.load(path)
    changed = room.with_float_weights(model)
    onnx.checker.check_model(changed, full_check=True)
    stored = {i.name for i in changed.graph.initializer}
    assert not any(n.op_type == "DequantizeLinear" and n.input[0] in stored for n in changed.graph.node)
    assert model == onnx.load(path)
    outputs = []
    for each in (model, changed):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(each.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"input": batch})[0])
    np.testing.assert_array_equal(*outputs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absence_is_one_clear_line(models, tmp_path):
    reason = TensorRTBackend().unavailable()
    assert reason.startswith("TensorRT skipped: ")
    assert "\n" not in reason
    with pytest.raises(ExportError, match="TensorRT skipped"):
        TensorRTBackend().build(models[0], "fp32", tmp_path)


@pytest.mark.parametrize(
    ("code", "package", "cuda", "expected"),
    [
        (None, True, True, "no NVIDIA driver on this machine"),
        (100, True, True, "cuInit returned 100"),
        (0, False, True, "pip install"),
        (0, True, False, "torch has no CUDA"),
        (0, True, True, None),
    ],
)
def test_probe_asks_the_driver_first(code, package, cuda, expected, monkeypatch):
    def load(name):
        if code is None:
            raise OSError(name)
        return types.SimpleNamespace(cuInit=lambda flags: code)

    monkeypatch.setattr(room.ctypes, "CDLL", load)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if package else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    reason = TensorRTBackend().unavailable()
    assert reason is None if expected is None else expected in reason


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/tensorrt_names is not there")
def test_the_fixture_is_what_the_bindings_say():
    for release, classes in RELEASES.items():
        names = json.loads((SHARED / f"{release}.json").read_text())["names"]
        for cls, members in classes.items():
            assert {k: names[cls][k] for k in members} == members
