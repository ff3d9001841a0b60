"""Doubles of TensorRT and of the CUDA driver, so that the board's code runs end to end on a CPU.

A class, member, keyword or overload that a release does not have raises here as it would there: the names and
signatures are those of the real bindings. Behind them stands onnxruntime: the "plan" is the profile and the ONNX file
itself, a run reads and writes the very addresses that it was given, and the driver's memory is the process's own.
"""

import ctypes
import enum
import functools
import inspect
import itertools
import json
import re
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

RELEASES = json.loads((Path(__file__).parent / "fixtures" / "tensorrt_names.json").read_text())["releases"]
PLAN = b"PLAN"
KINDS = {
    "Conv": "CONVOLUTION",
    "Gemm": "MATRIX_MULTIPLY",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
}


def tensorrt(release, **behaviour):
    """A module with the names of one release.

    ``behaviour`` replaces answers: ``Class__method=lambda self, *arguments: ...``. ``module.calls`` lists the calls,
    ``module.float_layers`` holds the nodes that the engine shall run in FP16 though asked for INT8.
    """
    calls = []
    module = types.SimpleNamespace(calls=calls, __version__=release, float_layers=set())
    answers = {**_ANSWERS, **{tuple(k.split("__", 1)): v for k, v in behaviour.items()}}
    functions, classes = RELEASES[release][""], {k: v for k, v in RELEASES[release].items() if k}
    for name, text in functions.items():
        method = _method(module, "", name, text.replace("(", "(self: module, ", 1), answers, calls)
        setattr(module, name, functools.partial(method, module))
    for cls, members in classes.items():
        constants = [k for k, v in members.items() if v in ("member", "Severity")]
        if constants and "->" not in "".join(members.values()):
            setattr(module, cls, enum.IntEnum(cls, constants, start=0))
            continue
        body = {k: k for k in constants}
        for name, text in members.items():
            if "->" in text:
                body[name] = _method(module, cls, name, text, answers, calls)
        body["__setattr__"] = _setter(cls, {k for k, v in members.items() if v == "property"}, calls)
        body["__getattr__"] = _getter(cls, {k for k, v in members.items() if v == "property"})
        setattr(module, cls, type(cls, (bytes,) if cls == "IHostMemory" else (), body))
    return module


def named(module, name):
    """Arguments of all calls of ``Class.method``, in order."""
    return [args for called, args in module.calls if called == name]


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


def _method(module, cls, name, text, answers, calls):
    signatures = list(_signatures(text))

    def method(self, *args, **kwargs):
        for signature, returned in signatures:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError:
                continue
            given = list(bound.arguments.values())[1:]
            calls.append((f"{cls}.{name}", given))
            if name == "__init__":
                put(self, module=module)
            if (cls, name) in answers:
                answer = answers[cls, name](self, *given)
                return None if name == "__init__" else answer
            if name == "__init__":
                return None
            known = [k for k in (returned, returned.removeprefix("I")) if hasattr(module, k)]
            return new(module, known[0]) if known else True
        raise TypeError(f"{cls}.{name}: incompatible arguments {args} {kwargs}, expected {text}")

    return method


def _setter(cls, properties, calls):
    def set_known(self, key, value):
        if key not in properties and type(self).__name__ == cls:  # a subclass in Python may have what it likes
            raise AttributeError(f"{cls} has no property {key}")
        calls.append((f"{cls}.{key}", [value]))
        object.__setattr__(self, key, value)

    return set_known


def _getter(cls, properties):
    def get_known(self, key):
        if key not in properties:
            raise AttributeError(f"{cls} has no attribute {key}")
        return

    return get_known


def put(thing, **values):
    """Set what stands behind a double, which the code under test can't."""
    for key, value in values.items():
        object.__setattr__(thing, key, value)
    return thing


def new(module, cls, **values):
    """An instance, made as the library makes them."""
    return put(getattr(module, cls).__new__(getattr(module, cls)), module=module, **values)


def host_memory(module, content):
    """What ``serialize`` returns."""
    return module.IHostMemory.__new__(module.IHostMemory, content)


def _parse(self, data, path=None):
    graph = onnx.load_from_string(bytes(data)).graph
    shapes = {i.name: tuple(d.dim_value or -1 for d in i.type.tensor_type.shape.dim) for i in graph.input}
    entries = [new(self.module, "ITensor", name=name, shape=shape) for name, shape in shapes.items()]
    put(self.network, data=bytes(data), entries=entries, num_inputs=len(entries), num_outputs=len(graph.output))
    put(self.network, nodes=[n for n in graph.node if n.op_type in KINDS], num_layers=0)
    put(self.network, num_layers=len(self.network.nodes))
    return True


def _layer(self, index):
    node = self.nodes[index]
    kind = getattr(self.module.LayerType, KINDS[node.op_type])
    return new(self.module, "ILayer", node=node, name=node.name, type=kind, num_inputs=len(node.input))


def _tensor(self, name):
    return new(self.module, "ITensor", name=name)


def _engine(self, plan):
    if not bytes(plan).startswith(PLAN):
        return None
    profile, _, data = bytes(plan)[len(PLAN) :].partition(b"\n")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    graph, tensors = onnx.load_from_string(data).graph, [*session.get_inputs(), *session.get_outputs()]
    facts = {"session": session, "graph": graph, "num_io_tensors": len(tensors), "profile": json.loads(profile)}
    return new(self.module, "ICudaEngine", **facts)


def _context(self, *_):
    return new(self.module, "IExecutionContext", engine_double=self, shapes={}, addresses={})


def _tensor_name(self, index):
    return (self.session.get_inputs() + self.session.get_outputs())[index].name


def _mode(self, name):
    mode = self.module.TensorIOMode
    return mode.INPUT if name in [i.name for i in self.session.get_inputs()] else mode.OUTPUT


def _profile_shape(self, name, profile_index):
    return self.profile[name]


def _build(self, network, config):
    return host_memory(self.module, PLAN + json.dumps(config.profile.shapes).encode() + b"\n" + network.data)


def _set_input_shape(self, name, shape):
    least, _, most = self.engine_double.profile[name]
    if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
        return False
    self.shapes[name] = tuple(shape)
    return True


def _output_shape(self, name):
    (batch, *_) = next(iter(self.shapes.values()))
    return [batch, *next(o.shape[1:] for o in self.engine_double.session.get_outputs() if o.name == name)]


def _execute(self, stream):
    assert stream, "the default stream"
    session = self.engine_double.session
    feed = {i.name: _view(self.addresses[i.name], self.shapes[i.name]) for i in session.get_inputs()}
    for out, result in zip(session.get_outputs(), session.run(None, feed), strict=True):
        _view(self.addresses[out.name], result.shape)[:] = result
    if self.profiler is not None:
        for node in self.engine_double.graph.node:
            if "QuantizeLinear" not in node.op_type:
                self.profiler.report_layer_time(f"{node.name}.weight + {node.name} + a", 0.25)
    return True


def _view(address, shape):
    return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(address)).reshape(shape)


def _inspection(self, form):
    known = self.execution_context is not None and self.execution_context.shapes
    writers = {name: n for n in self.graph.node for name in n.output}
    rows = []
    for node in self.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        source = writers.get(node.input[0])
        quantized = source is not None and source.op_type == "DequantizeLinear"
        kind = "Half" if node.name in self.module.float_layers else "Int8" if quantized else "Float"
        text = f"Row major {kind} format" if known else "N/A due to dynamic shapes"
        tensor = {"Name": node.input[0], "Format/Datatype": text}
        row = {"Name": f"{node.name} + Relu", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor]}
        rows.append({**row, "Weights": {"Type": kind, "Count": 1}} if known else row)
    return json.dumps({"Layers": rows, "Bindings": []})


_ANSWERS = {
    ("Builder", "create_network"): lambda self, flags: new(self.module, "INetworkDefinition", num_layers=0),
    ("Builder", "build_serialized_network"): _build,
    ("ITimingCache", "serialize"): lambda self: host_memory(self.module, b"timings"),
    ("OnnxParser", "__init__"): lambda self, network, logger: put(self, network=network),
    ("OnnxParser", "parse"): _parse,
    ("INetworkDefinition", "get_input"): lambda self, index: self.entries[index],
    ("INetworkDefinition", "get_layer"): _layer,
    ("ILayer", "get_input"): lambda self, index: _tensor(self, self.node.input[index]),
    ("ILayer", "get_output"): lambda self, index: _tensor(self, self.node.output[index]),
    ("IBuilderConfig", "add_optimization_profile"): lambda self, profile: put(self, profile=profile),
    ("IOptimizationProfile", "set_shape"): lambda self, name, *shapes: put(
        self, shapes={**self.__dict__.get("shapes", {}), name: shapes}
    ),
    ("Runtime", "deserialize_cuda_engine"): _engine,
    ("ICudaEngine", "create_execution_context"): _context,
    ("ICudaEngine", "get_tensor_name"): _tensor_name,
    ("ICudaEngine", "get_tensor_mode"): _mode,
    ("ICudaEngine", "get_tensor_dtype"): lambda self, name: self.module.DataType.FLOAT,
    ("ICudaEngine", "get_tensor_profile_shape"): _profile_shape,
    ("ICudaEngine", "create_engine_inspector"): lambda self: new(self.module, "EngineInspector", graph=self.graph),
    ("EngineInspector", "get_engine_information"): _inspection,
    ("IExecutionContext", "set_input_shape"): _set_input_shape,
    ("IExecutionContext", "get_tensor_shape"): _output_shape,
    ("IExecutionContext", "set_tensor_address"): lambda self, name, address: (
        self.addresses.update({name: address}) is None
    ),
    ("IExecutionContext", "execute_async_v3"): _execute,
}


class Driver:
    """libcuda on the process's own memory; every call returns a CUresult. ``clock_ms`` is read by events."""

    def __init__(self, init=0, name=b"Orin", capability=(8, 7), multiprocessors=8, memory=1 << 30):
        self.init, self.name, self.memory = init, name, memory
        self.attributes = {75: capability[0], 76: capability[1], 16: multiprocessors}
        self.buffers, self.events, self.streams = {}, {}, set()
        self.handles, self.ticks = itertools.count(1000), itertools.count(1)

    def cuInit(self, flags):
        return self.init

    def cuCtxGetCurrent(self, context):
        return 0

    def cuDeviceGet(self, device, ordinal):
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 1
        return 0

    def cuCtxSetCurrent(self, context):
        return 0 if context.value == 1 else 201

    def cuDeviceGetName(self, buffer, length, device):
        buffer.value = self.name
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.attributes[attribute]
        return 0

    def cuMemGetInfo_v2(self, free, total):
        free._obj.value, total._obj.value = self.memory - sum(map(len, self.buffers.values())), self.memory
        return 0

    def cuMemAlloc_v2(self, address, size):
        if size.value + sum(map(len, self.buffers.values())) > self.memory:
            return 2
        buffer = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(buffer)
        self.buffers[address._obj.value] = buffer
        return 0

    def cuMemFree_v2(self, address):
        return 0 if self.buffers.pop(address.value, None) is not None else 1

    def cuMemcpyHtoDAsync_v2(self, target, source, size, stream):
        assert size.value <= len(self.buffers[target.value])
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target, source, size, stream):
        assert size.value <= len(self.buffers[source.value])
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuStreamCreate(self, stream, flags):
        stream._obj.value = next(self.handles)
        self.streams.add(stream._obj.value)
        return 0

    def cuStreamSynchronize(self, stream):
        return 0 if stream.value in self.streams else 400

    def cuStreamDestroy_v2(self, stream):
        self.streams.remove(stream.value)
        return 0

    def cuEventCreate(self, event, flags):
        event._obj.value = next(self.handles)
        self.events[event._obj.value] = None
        return 0

    def cuEventRecord(self, event, stream):
        self.events[event.value] = next(self.ticks)
        return 0

    def cuEventSynchronize(self, event):
        return 0

    def cuEventElapsedTime(self, elapsed, start, end):
        elapsed._obj.value = 0.5 * (self.events[end.value] - self.events[start.value])
        return 0

    def cuEventDestroy_v2(self, event):
        del self.events[event.value]
        return 0

    def cuGetErrorName(self, code, text):
        text._obj.value = b"CUDA_ERROR_OF_THE_DOUBLE"
        return 0
