"""onnxruntime on the CPU: the exact check, no speed figure (its INT8 can be slower than its float)."""

from __future__ import annotations

from pathlib import Path

from hqp_lightning.board.arrays import Arrays, bundle
from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import describe, feed
from hqp_lightning.export.engines.base import Backend, Engine, processor_name

__all__ = ["OnnxRuntimeBackend"]


class OnnxRuntimeBackend(Backend):
    """Runs the ONNX file itself; a Q/DQ file is computed as written."""

    name = "onnxruntime"
    precisions = ("fp32", "int8")

    def unavailable(self) -> str | None:
        """Never: it is a dependency of this package."""
        return None

    def _build(self, onnx: Path, precision: str, engine_dir: Path, threads: int, batch_size: int) -> Engine:
        return _OnnxRuntimeEngine(onnx, precision, threads)


class _OnnxRuntimeEngine(Engine):
    def __init__(self, onnx: Path, precision: str, threads: int) -> None:
        import onnxruntime

        super().__init__("onnxruntime", precision, processor_name(), threads, str(onnx))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
            str(onnx), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = describe(onnx).inputs

    def run(self, batch: Arrays) -> Arrays:
        if self._session is None:
            raise ExportError(f"the engine of {self.path} is closed: build it again")
        return bundle(self._session.run(None, feed(self._inputs, batch)))

    def close(self) -> None:
        self._session = None
