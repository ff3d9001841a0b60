"""ONNX files that are there already: their records, and their graphs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from hqp_lightning.board.arrays import Arrays, each
from hqp_lightning.errors import ExportError
from hqp_lightning.records import ModelTensor, OnnxArtifact

__all__ = ["BATCH", "INPUT", "OUTPUT", "check_batch", "describe", "entries", "feed", "load_model"]

INPUT, OUTPUT, BATCH = "input", "logits", "batch"  # names in the files that the export writes


def describe(path: str | os.PathLike[str]) -> OnnxArtifact:
    """Read an existing ONNX file into its record.

    Args:
        path: a file of which the first axis of every input and output is the batch.

    Raises:
        ExportError: no such file, not ONNX, or an input without a fixed sample shape.
    """
    path = Path(path)
    model = _read(path, external=False)
    taken, given = _ends(model, path)
    return OnnxArtifact(
        path=str(path),
        file_bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        inputs=taken,
        outputs=given,
    )


def _read(path: Path, external: bool) -> onnx.ModelProto:
    if not path.is_file():
        raise ExportError(f"no ONNX file at {path}: export the model first")
    try:
        return onnx.load(path, load_external_data=external)
    except Exception as error:
        raise ExportError(f"{path} is not a readable ONNX file: {error}") from error


def _ends(model: onnx.ModelProto, path: Path) -> tuple[tuple[ModelTensor, ...], tuple[ModelTensor, ...]]:
    """The inputs and the outputs."""
    graph = model.graph
    inputs = entries(graph)
    if not inputs or not graph.output:
        raise ExportError(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs, expected one at least")
    taken, given = tuple(map(_tensor, inputs)), tuple(map(_tensor, graph.output))
    for tensor in taken:
        if not tensor.shape and len(taken) == 1 or None in tensor.shape:
            raise ExportError(f"{path}: input {tensor.name!r} has no fixed sample shape: only the batch may be dynamic")
    return taken, given


def entries(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs of a graph; old files name their weights among them."""
    stored = {i.name for i in graph.initializer}
    return [i for i in graph.input if i.name not in stored]


def feed(inputs: Sequence[ModelTensor], batch: Arrays) -> dict[str, np.ndarray]:
    """A batch as onnxruntime takes it: an array for each input, of its type.

    Raises:
        ExportError: a shape is not that of the input, or there are more or fewer arrays.
    """
    check_batch(inputs, batch)
    return {t.name: np.ascontiguousarray(x, dtype=t.dtype) for t, x in zip(inputs, each(batch), strict=True)}


def check_batch(inputs: Sequence[ModelTensor], batch: Arrays) -> None:
    """Refuse a batch that is not what a model takes; a few microseconds.

    Raises:
        ExportError: it is not made of arrays, a shape is not that of the input, or there are more or fewer of them.
    """
    given = each(batch)
    if strange := [type(x).__name__ for x in given if not hasattr(x, "shape")]:
        raise ExportError(f"a batch is an array, or a tuple of one for each input, got {', '.join(strange)}")
    if len(given) != len(inputs):
        raise ExportError(f"{len(given)} arrays in a batch, expected one for each input: {[t.name for t in inputs]}")
    for tensor, x in zip(inputs, given, strict=True):
        if x.shape[1:] != tensor.shape:
            of = f" for {tensor.name!r}" if len(inputs) > 1 else ""
            raise ExportError(
                f"the batch{of} has shape {x.shape}, expected (batch, {', '.join(map(str, tensor.shape))})"
            )


def _tensor(info: onnx.ValueInfoProto) -> ModelTensor:
    kind = info.type.tensor_type
    shape = tuple(d.dim_value or None for d in kind.shape.dim)[1:]
    return ModelTensor(info.name, shape, helper.tensor_dtype_to_np_dtype(kind.elem_type).name)


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a model whole.

    Raises:
        ExportError: as of `describe`.
    """
    model = _read(Path(path), external=True)
    _ends(model, Path(path))
    return model
