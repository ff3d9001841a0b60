"""An engine in GPU memory: run batches, time them, ask for its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.board.library import Log, title
from hqp_lightning.errors import ExportError

__all__ = ["LoadedEngine", "Times"]


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

    Raises:
        ExportError: the plan does not load, or has not one input of float32 or uint8 and one output of float32.
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
        outputs = [n for n in names if n not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise ExportError(f"{name} has {len(inputs)} inputs and {len(outputs)} outputs, expected one of each")
        self._in, self._out = inputs[0], outputs[0]
        kinds = [self._engine.get_tensor_dtype(n) for n in (self._in, self._out)]
        bytes_ = getattr(trt.DataType, "UINT8", None)  # of inputs, since 8.5
        if kinds[1] != trt.DataType.FLOAT or kinds[0] not in (trt.DataType.FLOAT, bytes_):
            raise ExportError(f"{name}: the input must be float32 or uint8, the output float32")
        self.input_dtype = np.dtype(np.float32 if kinds[0] == trt.DataType.FLOAT else np.uint8)
        _, best, most = (tuple(s) for s in self._engine.get_tensor_profile_shape(self._in, 0))
        self.sample_shape, self.batch_size, self.max_batch = most[1:], best[0], most[0]
        self._buffers: dict[str, tuple[int, int]] = {}  # tensor -> address, bytes
        self._stream, self._events = cuda.stream(), (cuda.event(), cuda.event())

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the output ``(n, classes)`` of a batch ``(n, *sample_shape)`` of any size, float32.

        Copied to the GPU and back; what is larger than the profile runs in parts.

        Raises:
            ExportError: closed, a batch of another shape, or TensorRT failed.
        """
        parts = [batch[k : k + self.max_batch] for k in range(0, len(batch), self.max_batch)]
        return np.concatenate([self._run(part) for part in parts])

    def _run(self, batch: np.ndarray) -> np.ndarray:
        result = self._bind(batch)
        self._enqueue()
        self._cuda.to_host(result, self._buffers[self._out][0], self._stream)
        return result

    def latency_ms(self, batch: np.ndarray) -> float:
        """GPU time of one call by CUDA events, milliseconds; the copies to and from the GPU are not in it."""
        self._bind(batch)
        return self._span(1)

    def time(self, batch: np.ndarray, *, warmup: int = 50, runs: int = 200) -> Times:
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
        return Times(latencies, 1e3 * len(batch) * runs / self._span(runs))

    def layers(self) -> str:
        """The engine's layers as the inspector's JSON, for the profile's best batch size."""
        if self._context is None:
            raise ExportError(f"the engine {self.name} is closed: load it again")
        inspector = self._engine.create_engine_inspector()
        # Without a context that knows its shapes, the formats read "N/A due to dynamic shapes".
        self._context.set_input_shape(self._in, (self.batch_size, *self.sample_shape))
        inspector.execution_context = self._context
        return inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)

    def _bind(self, batch: np.ndarray) -> np.ndarray:
        """Copy a batch to the GPU and return an empty array for the result."""
        if self._context is None:
            raise ExportError(f"the engine {self.name} is closed: load it again")
        if not 0 < len(batch) <= self.max_batch or batch.shape[1:] != self.sample_shape:
            expected = ("1.." + str(self.max_batch), *self.sample_shape)
            raise ExportError(f"{self.name}: batch of shape {batch.shape}, expected {expected}")
        self._cuda.activate()
        values = np.ascontiguousarray(batch, dtype=self.input_dtype)
        self._context.set_input_shape(self._in, values.shape)
        result = np.empty(tuple(self._context.get_tensor_shape(self._out)), np.float32)
        for name, nbytes in ((self._in, values.nbytes), (self._out, result.nbytes)):
            self._context.set_tensor_address(name, self._reserve(name, nbytes))
        self._cuda.to_device(self._buffers[self._in][0], values, self._stream)
        self._cuda.synchronize(self._stream)  # the array may be gone when a queued copy starts
        return result

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
