"""TensorRT 8.5 to 11: what a release can do is asked with ``hasattr``, never read from its version."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_format
import torch
from onnx import helper, numpy_helper

from hqp_lightning.errors import ExportError
from hqp_lightning.export.engines.base import Backend, Engine
from hqp_lightning.export.onnx import describe
from hqp_lightning.records import OnnxArtifact

__all__ = ["TensorRTBackend", "build_plan", "with_float_weights"]

MAX_BATCH = 32  # largest batch of the profile unless more is asked for; run() splits larger ones
_DEVICE = "cuda"
_ELSEWHERE = "the Q/DQ ONNX is complete, build it on the board"


class TensorRTBackend(Backend):
    """Builds a plan file for the GPU of this machine."""

    name = "tensorrt"
    precisions = ("fp32", "fp16", "int8")

    def unavailable(self) -> str | None:  # noqa: D102
        # The driver first: trt.Runtime() without a GPU ends the process with a segmentation fault on 8.6.
        if (reason := _driver_missing()) is not None:
            return f"TensorRT skipped: {reason}; {_ELSEWHERE}"
        if importlib.util.find_spec("tensorrt") is None:
            return "TensorRT skipped: not installed (pip install 'hqp-lightning[tensorrt]', or use JetPack's)"
        if not torch.cuda.is_available():
            return "TensorRT skipped: this torch has no CUDA, which the engine's buffers need; install a CUDA build"
        return None

    def _build(self, onnx: Path, precision: str, engine_dir: Path, threads: int, batch_size: int) -> Engine:
        import tensorrt

        plan_path = engine_dir / f"{onnx.stem}.{precision}.plan"
        plan = build_plan(tensorrt, onnx, precision, batch_size=batch_size, timing_cache=engine_dir / "timing.cache")
        plan_path.write_bytes(plan)
        engine = _TensorRTEngine(tensorrt, plan, describe(onnx), precision, plan_path, max(batch_size, MAX_BATCH))
        plan_path.with_suffix(".layers.json").write_text(engine.layers())
        return engine


def build_plan(trt: Any, onnx: Path, precision: str, *, batch_size: int = 1, timing_cache: Path | None = None) -> bytes:
    """Build a serialized engine.

    Args:
        trt: the tensorrt module.
        onnx: float model, or Q/DQ model for ``"int8"``.
        precision: ``"fp32"`` (TF32 off), ``"fp16"``, or ``"int8"`` (float parts in fp16 where a flag allows it).
        batch_size: the size to optimise for; the engine takes 1 to ``max(batch_size, 32)``.
        timing_cache: file with kernel timings, read if there and written, so that the next build is fast.

    Returns:
        The plan, for this GPU and this TensorRT only.

    Raises:
        ExportError: the release has no FP16 flag, the model does not parse, or the build fails; details are on stderr.
    """
    artifact = describe(onnx)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(with_float_weights(onnx_format.load(onnx)).SerializeToString()):
        reasons = "; ".join(parser.get_error(k).desc() for k in range(parser.num_errors))
        raise ExportError(f"TensorRT cannot parse {onnx}: {reasons}")
    config = builder.create_builder_config()
    _set_precision(trt, config, precision)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector sees only layer names
    config.add_optimization_profile(_profile(builder, artifact, batch_size))
    cached = timing_cache.read_bytes() if timing_cache is not None and timing_cache.is_file() else b""
    for data in (cached, b""):  # a cache from another GPU or release is refused, an empty one always fits
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            break
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT could not build {onnx} as {precision}: see its messages above")
    if timing_cache is not None:
        timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def with_float_weights(model: onnx_format.ModelProto) -> onnx_format.ModelProto:
    """Return the model with each stored int8 weight written as float, Quantize, Dequantize; computes the same.

    TensorRT 8 refuses int8 constants ("only activation types allowed as input to this layer"); every release folds
    this form back to the same integers.
    """
    changed = onnx_format.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    stored = {i.name: i for i in graph.initializer}
    nodes: list[onnx_format.NodeProto] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and (weight := stored.get(node.input[0])) is not None:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            integers = numpy_helper.to_array(weight)
            scale = numpy_helper.to_array(stored[node.input[1]])
            shape = [-1 if k == axis else 1 for k in range(integers.ndim)] if scale.ndim else []
            name = f"{weight.name}_float"
            values = integers.astype(np.float32) * scale.reshape(shape)
            graph.initializer.append(numpy_helper.from_array(values, name))
            inputs = [name, *node.input[1:]]
            nodes.append(
                helper.make_node("QuantizeLinear", inputs, [weight.name], f"{weight.name}_quantize", axis=axis)
            )
            graph.initializer.remove(weight)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


class _TensorRTEngine(Engine):
    def __init__(
        self, trt: Any, plan: bytes, artifact: OnnxArtifact, precision: str, path: Path, max_batch: int
    ) -> None:
        super().__init__("tensorrt", precision, _device_name(), 0, str(path))
        self._trt, self._io, self._max_batch = trt, (artifact.input_name, artifact.output_name), max_batch
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ExportError(f"TensorRT cannot load {path}: it is for another GPU or release; build it here")
        self._context = self._engine.create_execution_context()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Copy to the GPU, run, copy back: a latency measured around it includes both copies."""
        if self._context is None:
            raise ExportError(f"the engine of {self.path} is closed: build it again")
        parts = [batch[k : k + self._max_batch] for k in range(0, len(batch), self._max_batch)]
        return np.concatenate([self._run(part) for part in parts])

    def _run(self, batch: np.ndarray) -> np.ndarray:
        name_in, name_out = self._io
        with _stream() as stream:
            values = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32)).to(_DEVICE)
            self._context.set_input_shape(name_in, tuple(values.shape))
            out = torch.empty(tuple(self._context.get_tensor_shape(name_out)), dtype=torch.float32, device=_DEVICE)
            self._context.set_tensor_address(name_in, values.data_ptr())
            self._context.set_tensor_address(name_out, out.data_ptr())
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise ExportError(f"TensorRT failed to run {self.path}: see its messages above")
            return out.cpu().numpy()  # on the same stream, so it waits

    def layers(self) -> str:
        """The engine's layers with their precisions, as the inspector's JSON."""
        return self._engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)

    def close(self) -> None:
        self._context = self._engine = self._runtime = None  # in this order: each needs the next


def _network_flags(trt: Any) -> int:
    """8.x and 10.x want the explicit batch asked for; later releases know nothing else."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0


def _set_precision(trt: Any, config: Any, precision: str) -> None:
    if precision == "fp16" and not hasattr(trt.BuilderFlag, "FP16"):
        raise ExportError(
            "this TensorRT types networks strongly and has no FP16 flag: an FP16 engine needs an FP16 model; "
            "build fp32 or int8, or use TensorRT 10"
        )
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    for name in {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[precision]:
        if hasattr(trt.BuilderFlag, name):  # gone where networks are strongly typed: the Q/DQ nodes say it all
            config.set_flag(getattr(trt.BuilderFlag, name))


def _profile(builder: Any, artifact: OnnxArtifact, batch_size: int) -> Any:
    profile = builder.create_optimization_profile()
    sizes = [(n, *artifact.input_shape) for n in (1, batch_size, max(batch_size, MAX_BATCH))]
    profile.set_shape(artifact.input_name, *sizes)
    return profile


def _driver_missing() -> str | None:
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        code = ctypes.CDLL(library).cuInit(0)
    except OSError:
        return f"no NVIDIA driver on this machine ({library} not found)"
    return f"no usable NVIDIA GPU on this machine (cuInit returned {code})" if code else None


def _device_name() -> str:
    return torch.cuda.get_device_name()


@contextlib.contextmanager
def _stream() -> Iterator[Any]:
    stream: Any = torch.cuda.Stream()  # on the default stream TensorRT would synchronize more than it must
    with torch.cuda.stream(stream):
        yield stream
