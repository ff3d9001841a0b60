"""ONNX files that are there already: their records, and their graphs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import onnx
from onnx import helper

from hqp_lightning.errors import ExportError
from hqp_lightning.records import OnnxArtifact

__all__ = ["BATCH", "INPUT", "OUTPUT", "describe", "load_model"]

INPUT, OUTPUT, BATCH = "input", "logits", "batch"  # names in the files that the export writes


def describe(path: str | os.PathLike[str]) -> OnnxArtifact:
    """Read an existing ONNX file into its record.

    Args:
        path: a file with one input and one output whose first axis is the batch.

    Raises:
        ExportError: no such file, not ONNX, or not one input of fixed sample shape and one output.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"no ONNX file at {path}: export the model first")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ExportError(f"{path} is not a readable ONNX file: {error}") from error
    graph = model.graph
    stored = {i.name for i in graph.initializer}
    inputs = [i for i in graph.input if i.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ExportError(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs, expected one of each")
    shape = tuple(d.dim_value for d in inputs[0].type.tensor_type.shape.dim)[1:]
    if not shape or not all(shape):
        raise ExportError(f"{path}: input {inputs[0].name!r} has no fixed sample shape: only the batch may be dynamic")
    kind = helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type).name
    return OnnxArtifact(
        path=str(path),
        file_bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        input_name=inputs[0].name,
        input_shape=shape,
        output_name=graph.output[0].name,
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        input_dtype=kind,
    )


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a model whole.

    Raises:
        ExportError: no such file, not ONNX, or not one input and one output.
    """
    describe(path)  # raises a clear error for a file that is not one of ours
    return onnx.load(path)
