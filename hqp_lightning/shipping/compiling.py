"""Engines for GPUs that are not here, at the end of every run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hqp_lightning.errors import ExportError
from hqp_lightning.export.board_files import FORMS
from hqp_lightning.export.engines.rtx import compile_engines, missing
from hqp_lightning.export.forms import write_form
from hqp_lightning.export.options import FileOptions
from hqp_lightning.records import CompiledEngine, OnnxArtifact

__all__ = ["compile_for_others"]


def compile_for_others(
    dense: OnnxArtifact | None, dirpath: Path, options: FileOptions
) -> tuple[list[CompiledEngine], list[str]]:
    """Compile the dense and the pruned model in FP16 and the INT8 file, from the forms that lie in ``dirpath``.

    Args:
        dense: the dense float model; None where nothing was pruned: then the files in ``dirpath`` are its own.
        dirpath: with ``tensorrt/model.fp16.onnx`` and ``tensorrt/model.int8.fp16.onnx``, where these could be written.
        options: the compute capabilities, batch size and threads.

    Returns:
        The engines, and what there is to say of those that are not there: nothing that is refused here costs the run.
    """
    for old in (dirpath / "engines").glob("model.*.sm*"):  # of an earlier run: worse than none
        old.unlink()
    if not options.rtx:
        return [], []
    if (reason := missing()) is not None:
        return [], [reason]
    with tempfile.TemporaryDirectory() as folder:
        models: dict[tuple[str, str], Path] = {}
        try:
            if dense is not None:
                models["dense", "fp16"] = write_form(dense.path, "fp16", Path(folder) / "dense.fp16.onnx")
        except ExportError as error:
            return [], [f"NVIDIA's compiler skipped: {error}"]
        for precision, name in (("fp16", "model.fp16.onnx"), ("int8", "model.int8.fp16.onnx")):
            if (path := dirpath / FORMS / name).is_file():
                models["dense" if dense is None else "pruned", precision] = path
        sizes = {"batch_size": options.batch_size, "threads": options.threads}
        return compile_engines(models, dirpath, options.rtx, **sizes)
