"""Networks of a latency table in one small archive, for ``hqp-engine profile`` on a board."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from hqp_lightning.board.profiling import PLAN
from hqp_lightning.board.provenance import FORMS
from hqp_lightning.errors import ExportError
from hqp_lightning.export.forms import write_form

__all__ = ["filled", "write_archive"]

_LARGE, _PERIOD = 256, 251


def write_archive(
    path: str | os.PathLike[str], table: Mapping[str, Any], files: Sequence[str], nodes: Mapping[str, str]
) -> Path:
    """Write ``latency_networks.zip``, whole or not at all.

    Args:
        path: the file.
        table: a `LatencyTable` as plain data.
        files: the ONNX file of each of its networks, with weights of `filled`, that compress to next to nothing.
        nodes: see `hqp_lightning.board.parts.part_of`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive, tempfile.TemporaryDirectory() as folder:
            names = [f"{k}.onnx" for k in range(len(files))]
            archive.writestr(PLAN, json.dumps({**table, "files": names, "nodes": dict(nodes)}))
            for k, file in enumerate(files):
                archive.write(file, names[k])
                int8 = table["networks"][k]["precision"] == "int8"
                for form in ("trt8", "fp16") if int8 else ():
                    try:
                        made = write_form(file, form, Path(folder) / f"{k}.{form}.onnx")
                    except ExportError:  # only the releases that need it miss it, and say so
                        continue
                    archive.write(made, f"{FORMS}/{made.name}")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def filled(float_path: str | os.PathLike[str], out_path: Path) -> str:
    """The model with weights that repeat: it takes as long as with any others, and compresses to next to nothing."""
    model = onnx.load(float_path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= _LARGE:
            pattern = (np.arange(values.size) % _PERIOD - _PERIOD // 2).astype(np.float32) / _PERIOD
            tensor.CopyFrom(numpy_helper.from_array(pattern.reshape(values.shape), tensor.name))
    onnx.save(model, out_path)
    return str(out_path)
