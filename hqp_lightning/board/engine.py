"""An engine in GPU memory: run batches, time them, ask for its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.board.arrays import Arrays, bundle, cut, each, joined
from hqp_lightning.board.library import Log, title
from hqp_lightning.errors import ExportError

__all__ = ["LoadedEngine", "Times"]

# Names of TensorRT; a release may lack some.
_TYPES = {"FLOAT": "float32", "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "HALF": "float16", "BOOL": "bool"}


class Times:
    """Latencies of single calls and the throughput of calls in a row, both on the GPU's clock, without copies.

    Attributes:
        latencies_ms: one for each call, from its start on an idle GPU to its end.
        images_per_s: with the next call always queued.
    """

    def __init__(self, latencies_ms: list[float], images_per_s: float) -> None:
        self.latencies_ms, self.images_per_s = latencies_ms, images_per_s

    @property
    def median_ms(self) -> float:
        """Median latency, milliseconds."""
        return float(np.median(self.latencies_ms))

    @property
    def p95_ms(self) -> float:
        """95th percentile of the latency, milliseconds."""
        return float(np.percentile(self.latencies_ms, 95))


class LoadedEngine:
    """A deserialized plan with its context, one stream and its buffers; close it, or use it in a ``with`` statement.

    Args:
        trt: the tensorrt module.
        cuda: the GPU; its driver has answered, or ``trt.Runtime`` ends the process with a segmentation fault (8.6).
        plan: the serialized engine; `hqp_lightning.board.provenance.check_note` says whether it may run here.
        name: of the engine, for messages.

    Attributes:
        library: the module that runs it.
        gpu: the name of the GPU.
        inputs: name to the shape of a sample and the type, in the model's order.
        outputs: name to type.

    Raises:
        ExportError: the plan does not load, or has a tensor of a type that numpy does not have, such as float8.
    """

    def __init__(self, trt: Any, cuda: Any, plan: bytes, name: str | Path) -> None:
        self._trt, self._cuda, self.name = trt, cuda, str(name)
        self.library, self.gpu = trt, cuda.name
        self._log = Log(trt)
        self._runtime = trt.Runtime(self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ExportError(f"{title(trt)} cannot load {name}: {self._log.why()}; build it again here")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ExportError(f"{title(trt)} cannot run {name}: {self._log.why()}")
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        profiles = {n: [tuple(s) for s in self._engine.get_tensor_profile_shape(n, 0)] for n in inputs}
        self.inputs = {n: (most[1:], self._dtype(n)) for n, (_, _, most) in profiles.items()}
        self.outputs = {n: self._dtype(n) for n in names if n not in inputs}
        _, best, most = profiles[inputs[0]]
        self.batch_size, self.max_batch = best[0], most[0]
        self._buffers: dict[str, tuple[int, int]] = {}  # tensor -> address, bytes
        self._stream, self._events = cuda.stream(), (cuda.event(), cuda.event())

    def _dtype(self, name: str) -> Any:
        kind, known = self._engine.get_tensor_dtype(name), self._trt.DataType
        found = next((t for n, t in _TYPES.items() if hasattr(known, n) and getattr(known, n) == kind), None)
        if found is None:
            raise ExportError(f"{self.name}: {name!r} is of type {kind}, expected one of {', '.join(_TYPES)}")
        return np.dtype(found)

    def run(self, batch: Arrays) -> Arrays:
        """Return the outputs ``(n, ...)`` of a batch ``(n, *shape)`` of any size: an array, or a tuple of several.

        Copied to the GPU and back; what is larger than the profile runs in parts.

        Args:
            batch: an array, or one for each of ``inputs``.

        Raises:
            ExportError: closed, a batch of another shape, or TensorRT failed.
        """
        starts = range(0, len(each(batch)[0]), self.max_batch)
        return joined([self._run(cut(batch, k, k + self.max_batch)) for k in starts])

    def _run(self, batch: Arrays) -> Arrays:
        results = self._bind(batch)
        self._enqueue()
        for name, result in results.items():
            self._cuda.to_host(result, self._buffers[name][0], self._stream)
        return bundle(list(results.values()))

    def latency_ms(self, batch: Arrays) -> float:
        """GPU time of one call by CUDA events, milliseconds; the copies to and from the GPU are not in it."""
        self._bind(batch)
        return self._span(1)

    def time(self, batch: Arrays, *, warmup: int = 50, runs: int = 200) -> Times:
        """Time calls by CUDA events, first one by one, then in a row; copies lie outside.

        Args:
            batch: at most ``max_batch`` samples.
            warmup: untimed calls before, in which clocks rise and kernels load.
            runs: timed calls of each kind, at least 1.
        """
        if warmup < 0 or runs < 1:
            raise ExportError(f"warmup={warmup}, runs={runs}: expected at least 0 and 1")
        self._bind(batch)
        self._span(warmup)
        latencies = [self._span(1) for _ in range(runs)]
        return Times(latencies, 1e3 * len(each(batch)[0]) * runs / self._span(runs))

    def profiled(self, batch: Arrays, profiler: Any, calls: int) -> None:
        """Run calls one by one, of which a ``trt.IProfiler`` hears the time of each layer; it slows them down."""
        self._bind(batch)
        self._context.profiler = profiler
        for _ in range(calls):
            self._enqueue()
            self._cuda.synchronize(self._stream)

    def layers(self) -> str:
        """The engine's layers as the inspector's JSON, for the profile's best batch size."""
        if self._context is None:
            raise ExportError(f"the engine {self.name} is closed: load it again")
        inspector = self._engine.create_engine_inspector()
        # Without a context that knows its shapes, the formats read "N/A due to dynamic shapes".
        for name, (shape, _) in self.inputs.items():
            self._context.set_input_shape(name, (self.batch_size, *shape))
        inspector.execution_context = self._context
        return inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)

    def _bind(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Copy a batch to the GPU and return an empty array for each output."""
        if self._context is None:
            raise ExportError(f"the engine {self.name} is closed: load it again")
        given, size = each(batch), len(each(batch)[0])
        if len(given) != len(self.inputs):
            raise ExportError(f"{self.name}: {len(given)} arrays, expected one for each of {', '.join(self.inputs)}")
        for x, (shape, _) in zip(given, self.inputs.values()):
            if not 0 < len(x) <= self.max_batch or x.shape[1:] != shape or len(x) != size:
                expected = ("1.." + str(self.max_batch), *shape)
                raise ExportError(f"{self.name}: batch of shape {x.shape}, expected {expected}")
        self._cuda.activate()
        values = {n: np.ascontiguousarray(x, dtype=kind) for (n, (_, kind)), x in zip(self.inputs.items(), given)}
        for name, x in values.items():
            self._context.set_input_shape(name, x.shape)
        results = {n: np.empty(tuple(self._context.get_tensor_shape(n)), kind) for n, kind in self.outputs.items()}
        for name, x in (*values.items(), *results.items()):
            self._context.set_tensor_address(name, self._reserve(name, x.nbytes))
        for name, x in values.items():
            self._cuda.to_device(self._buffers[name][0], x, self._stream)
        self._cuda.synchronize(self._stream)  # the arrays may be gone when a queued copy starts
        return results

    def _span(self, calls: int) -> float:
        start, end = self._events
        self._cuda.record(start, self._stream)
        for _ in range(calls):
            self._enqueue()
        self._cuda.record(end, self._stream)
        return self._cuda.elapsed_ms(start, end)  # waits

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise ExportError(f"TensorRT {self._trt.__version__} failed to run {self.name}: {self._log.why()}")

    def _reserve(self, name: str, nbytes: int) -> int:
        address, size = self._buffers.get(name, (0, 0))
        if size < nbytes:
            if address:
                del self._buffers[name]
                self._cuda.free(address)
            address = self._cuda.allocate(nbytes)
            self._buffers[name] = address, nbytes
        return address

    def close(self) -> None:
        """Free the GPU's memory; may be called again."""
        if self._context is None:
            return
        self._context = self._engine = self._runtime = None  # in this order: each needs the next
        self._cuda.activate()
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        self._cuda.release(self._stream, *self._events)

    def __enter__(self) -> LoadedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
