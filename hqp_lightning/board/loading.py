"""From an engine on disk to one in GPU memory, with the library that its note names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hqp_lightning.board.cuda import Cuda
from hqp_lightning.board.engine import LoadedEngine
from hqp_lightning.board.library import import_rtx, import_tensorrt
from hqp_lightning.board.notes import check_note, read_note

__all__ = ["load"]


def load(engine: Path) -> tuple[LoadedEngine, dict[str, Any], list[str]]:
    """Load an engine; return it with its note, and warnings in words.

    Raises:
        ExportError: no GPU, no library, or an engine that may not run here.
    """
    cuda = Cuda()
    note = read_note(engine)
    trt = import_rtx() if "tensorrt_rtx" in note else import_tensorrt()
    warnings = check_note(engine, note, trt, cuda)
    return LoadedEngine(trt, cuda, engine.read_bytes(), engine), note, [f"warning: {text}" for text in warnings]
