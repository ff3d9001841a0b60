"""OpenVINO on the CPU: runs the same Q/DQ file with real INT8 kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.board.arrays import Arrays, bundle, each
from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import check_batch
from hqp_lightning.export.engines.base import Backend, Engine, lacks_vnni, processor_name
from hqp_lightning.records import ModelTensor

__all__ = ["OpenVINOBackend", "device_name"]


class OpenVINOBackend(Backend):
    """Latency-tuned; float32 is float32 even where OpenVINO would rather use bfloat16, a precision of its own here.

    So are the float parts of ``"int8"``; ``"int8+bf16"`` has them in bfloat16, as OpenVINO runs the file unless it is
    told otherwise: quicker, and on some networks not as exact, so it is scored as any other engine.
    """

    name = "openvino"
    precisions = ("fp32", "bf16", "int8", "int8+bf16")

    def offered(self) -> tuple[str, ...]:
        """Bfloat16 is offered where the processor has instructions for it; elsewhere it would be float32 by detours."""
        return tuple(p for p in self.precisions if not p.endswith("bf16") or "BF16" in _capabilities())

    def unavailable(self) -> str | None:
        """It is an extra."""
        if importlib.util.find_spec("openvino") is None:
            return "OpenVINO skipped: not installed (pip install 'hqp-lightning[openvino]')"
        return None

    def caution(self) -> str | None:
        """Its INT8 arithmetic is not everywhere the same."""
        if not lacks_vnni():
            return None
        return (
            "OpenVINO on a CPU without VNNI instructions: sums of INT8 products may saturate here, so that the INT8 "
            "score may be lower than on the target (docs/int8.md)."
        )

    def _build(self, onnx: Path, precision: str, engine_dir: Path, threads: int, batch_size: int) -> Engine:
        return _OpenVINOEngine(onnx, precision, threads, batch_size)


class _OpenVINOEngine(Engine):
    def __init__(self, onnx: Path, precision: str, threads: int, batch_size: int) -> None:
        import openvino

        core: Any = openvino.Core()
        super().__init__("openvino", precision, device_name(core), threads, str(onnx))
        self._core, self._tensor, self._batch_size = core, openvino.Tensor, batch_size
        self._given: list[np.ndarray] = []  # the request reads them where they lie
        # A fixed batch is up to a quarter faster than a dynamic one (small networks); the others get a second
        # compilation, made when the first of them comes.
        self._requests: dict[int, Any] = {batch_size: self._compile(batch_size)}

    def _compile(self, batch: int) -> Any:
        model = self._core.read_model(self.path)
        self._inputs = [_tensor(entry) for entry in model.inputs]
        self._outputs = len(model.outputs)
        shapes = {entry: entry.get_partial_shape() for entry in model.inputs}
        for shape in shapes.values():
            shape[0] = batch
        model.reshape(shapes)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            # Without it bfloat16 sneaks in on AVX512-BF16 and AMX machines: the "float" model would be twice as
            # fast as float32 and not as exact, and the float parts of an INT8 model would lose accuracy.
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision.endswith("bf16") else "f32",
        }
        return self._core.compile_model(model, "CPU", options).create_infer_request()

    def run(self, batch: Arrays) -> Arrays:
        self.prepared(batch)()
        request = self._request(batch)
        return bundle([request.get_output_tensor(k).data.copy() for k in range(self._outputs)])  # its own buffers

    def prepared(self, batch: Arrays) -> Callable[[], object]:
        """The batch bound to the request; the call is the inference alone."""
        if self._core is None:
            raise ExportError(f"the engine of {self.path} is closed: build it again")
        check_batch(self._inputs, batch)
        request = self._request(batch)
        given = [np.require(x, t.dtype, ("C", "W")) for x, t in zip(each(batch), self._inputs, strict=True)]
        for k, x in enumerate(given):
            request.set_input_tensor(k, self._tensor(x, shared_memory=True))
        self._given = given

        # In this thread: start_async and wait hand the call to another one and back, a fifth of a small engine's call
        # (findings/openvino_async_leaves_the_thread.sh); infer(inputs) makes dictionaries around it, a sixth.
        def call() -> object:
            if self._given is not given:
                raise ExportError(f"the engine of {self.path} got another batch, or was closed: prepare it again")
            return request.infer(share_outputs=True)

        return call

    def _request(self, batch: Arrays) -> Any:
        key = self._batch_size if len(each(batch)[0]) == self._batch_size else -1  # -1: OpenVINO's dynamic dimension
        if key not in self._requests:
            self._requests[key] = self._compile(key)
        return self._requests[key]

    def close(self) -> None:
        self._requests.clear()
        self._core, self._given = None, []


def _tensor(entry: Any) -> ModelTensor:
    sizes = [d.get_length() if d.is_static else None for d in entry.get_partial_shape()]
    return ModelTensor(entry.get_any_name(), tuple(sizes[1:]), entry.get_element_type().to_dtype().name)


def device_name(core: Any = None) -> str:
    """Name of the processor; OpenVINO drops the model number of some ("AMD EPYC"), the system's name says more then."""
    import openvino

    core = openvino.Core() if core is None else core
    return max(str(core.get_property("CPU", "FULL_DEVICE_NAME")), processor_name(), key=len)


def _capabilities() -> list[str]:
    import openvino

    return list(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
