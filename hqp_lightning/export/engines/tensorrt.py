"""TensorRT on this machine: `hqp_lightning.board`, which also builds on the board, behind the engines' interface."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from hqp_lightning.board.arrays import Arrays
from hqp_lightning.board.cuda import Cuda, driver_missing
from hqp_lightning.board.engine import LoadedEngine
from hqp_lightning.board.layers import fell_back
from hqp_lightning.board.library import import_tensorrt
from hqp_lightning.board.make import make
from hqp_lightning.board.provenance import form_for
from hqp_lightning.export.engines.base import Backend, Engine
from hqp_lightning.export.forms import write_form

__all__ = ["TensorRTBackend"]

_log = logging.getLogger(__name__)


class TensorRTBackend(Backend):
    """Builds an engine for the GPU of this machine."""

    name = "tensorrt"
    precisions = ("fp32", "fp16", "int8")
    activation_types = ("int8",)

    def unavailable(self) -> str | None:
        """It needs a GPU, and comes as an extra or with JetPack."""
        # The driver first: trt.Runtime() without a GPU ends the process with a segmentation fault on 8.6.
        if (reason := driver_missing()) is not None:
            return f"TensorRT skipped: {reason}; the Q/DQ ONNX is complete, build it on the board"
        if importlib.util.find_spec("tensorrt") is None:
            return "TensorRT skipped: not installed (pip install 'hqp-lightning[tensorrt]', or use JetPack's)"
        return None

    def _build(self, onnx: Path, precision: str, engine_dir: Path, threads: int, batch_size: int) -> Engine:
        trt, cuda = import_tensorrt(), Cuda()
        source = onnx
        if form := form_for(trt, precision):
            source = write_form(onnx, form, engine_dir / f"{onnx.stem}.{form}.onnx")
        path = engine_dir / f"{onnx.stem}.{precision}.engine"
        cache = engine_dir / "timing.cache"
        made = make(trt, cuda, source, path, precision, batch_size=batch_size, timing_cache=cache)
        path.with_suffix(".layers.json").write_text(made.inspection, encoding="utf-8")
        if made.unread is not None:
            _log.warning("hqp: %s", made.unread)
        for layer in fell_back(made.layers, made.asked):
            _log.warning("hqp: TensorRT runs %s in %s, not in INT8", layer.name, layer.precision)
        return _TensorRTEngine(made.engine, precision, cuda.name)


class _TensorRTEngine(Engine):
    def __init__(self, loaded: LoadedEngine, precision: str, device: str) -> None:
        super().__init__("tensorrt", precision, device, 0, loaded.name)
        self._loaded = loaded

    def run(self, batch: Arrays) -> Arrays:
        return self._loaded.run(batch)

    def latency_ms(self, batch: Arrays) -> float:
        """GPU time of one call by CUDA events: the copies to and from the GPU are not in it."""
        return self._loaded.latency_ms(batch)

    def close(self) -> None:
        self._loaded.close()
