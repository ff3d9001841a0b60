"""The whole way from a model to a checked engine on disk, for ``hqp-engine build`` and for the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hqp_lightning.board.build import build_plan
from hqp_lightning.board.engine import LoadedEngine
from hqp_lightning.board.files import check_writable, write_whole
from hqp_lightning.board.layers import Layer, fell_back, read_layers, table, untold
from hqp_lightning.board.notes import write_note
from hqp_lightning.errors import ExportError

__all__ = ["Made", "fallback_lines", "make"]


class Made:
    """An engine that was built here.

    Attributes:
        engine: loaded, to be closed by whoever asked for it.
        inspection: the inspector's JSON.
        layers: the same, parsed; empty where it cannot be read, see ``unread``.
        unread: why it cannot be read, or None. An engine is not lost for that.
        asked: names of the model's layers that should be INT8.
    """

    def __init__(self, engine: LoadedEngine, inspection: str, asked: list[str]) -> None:
        self.engine, self.inspection, self.asked = engine, inspection, asked
        self.layers: list[Layer] = []
        self.unread: str | None = None
        try:
            self.layers = read_layers(inspection)
        except ExportError as error:
            self.unread = str(error)

    def lines(self) -> list[str]:
        """The table of the layers, and which fell back; or why there is none."""
        if self.unread is not None:
            return [f"warning: the precision of the layers is not known: {self.unread}"]
        return [table(self.layers), *fallback_lines(self.layers, self.asked)]


def make(
    trt: Any,
    cuda: Any,
    source: Path,
    path: Path,
    precision: str,
    *,
    timing_cache: Path | None = None,
    **options: Any,
) -> Made:
    """Build ``source``, load the engine, and only then write it to ``path``, with its note.

    Args:
        trt: the tensorrt module.
        cuda: the GPU.
        source: the model in the form that this release takes.
        path: the engine to write; one that is there stays as it was if anything fails.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        timing_cache: file with kernel timings, read if there and written.
        options: others of `hqp_lightning.board.build.build_plan`.

    Raises:
        ExportError: the model cannot be built, the engine cannot be loaded, or a file cannot be written.
    """
    for target in (path, timing_cache):
        if target is not None:
            check_writable(target)
    plan, asked = build_plan(trt, source, precision, timing_cache=timing_cache, **options)
    engine = LoadedEngine(trt, cuda, plan, path)
    try:
        made = Made(engine, engine.layers(), asked)
        write_whole(path, plan)
        facts = {"batch_size": engine.batch_size, "max_batch": engine.max_batch, "int8_asked": asked}
        write_note(path, source, trt, cuda, precision=precision, **facts)
    except BaseException:
        engine.close()
        raise
    return made


def fallback_lines(layers: list[Layer], asked: list[str]) -> list[str]:
    """Say which layers should be INT8 and are not, one line each, and how many."""
    if not asked:
        return []
    floats, silent = fell_back(layers, asked), untold(layers, asked)
    lines = [f"warning: {x.name} should be INT8 and runs in {x.precision}" for x in floats]
    total = f"{len(asked)} convolutions and matrix products asked for INT8, {len(floats)} layers fell back"
    more = f", of {len(silent)} TensorRT does not tell ({', '.join(silent[:3])}{' ...' * (len(silent) > 3)})"
    return [*lines, total + more if silent else total]
