"""Any batch size for a file that was exported for one, and a fixed size of the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import BATCH
from hqp_lightning.export.edits import Graph

__all__ = ["free_batch_"]


def free_batch_(path: Path, model: onnx.ModelProto, size: tuple[int, int] | None) -> tuple[int | None, list[str]]:
    """Free the batch axis of the input, and fix the others.

    A Reshape to a stored shape that begins with the batch size takes that from its input instead.

    Args:
        path: for errors.
        model: changed in place.
        size: height and width where the file leaves them open.

    Returns:
        The batch size that the file was made for, None if it was free, and what was done.

    Raises:
        ExportError: sizes are open, and ``size`` is None.
    """
    entry, done = model.graph.input[0], []
    dims = entry.type.tensor_type.shape.dim
    if len(dims) < 2:
        raise ExportError(f"{path}: input {entry.name!r} has {len(dims)} axes, expected a batch of pictures")
    open_ = [k for k, d in enumerate(dims) if k and not d.dim_value]
    if open_ and size is None:
        raise ExportError(f"{path}: input {entry.name!r} leaves its size open: say which with --size")
    if open_:
        spatial = [2, 3] if not set(open_) - {2, 3} else [1, 2]
        if len(dims) != 4 or set(open_) - set(spatial):
            raise ExportError(f"{path}: input {entry.name!r} has open axes {open_}, only height and width may be")
        for axis, pixels in zip(spatial, size or (), strict=True):
            dims[axis].dim_value = pixels
        done.append(f"size fixed at {'x'.join(map(str, size or ()))}")
    batch = dims[0].dim_value or None
    if batch is not None:
        _free_reshapes_(model, batch)
        done.append(f"batch of {batch} made free")
    dims[0].dim_param = dims[0].dim_param or BATCH
    for output in model.graph.output:
        shape = output.type.tensor_type.shape.dim
        if shape:
            shape[0].dim_param = dims[0].dim_param
    del model.graph.value_info[:]
    return batch, done


def _free_reshapes_(model: onnx.ModelProto, batch: int) -> None:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    first = {
        v.name: v.type.tensor_type.shape.dim[0].dim_value
        for v in (*inferred.value_info, *inferred.input)
        if v.type.tensor_type.shape.dim
    }
    graph = Graph(model)
    for index, node in enumerate(model.graph.node):
        shape = graph.value(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or not len(shape) or shape[0] != batch or first.get(node.input[0]) != batch:
            continue
        name = f"{node.input[1]}_free{index}"
        free = 0 if -1 in shape else -1  # as the input has it; what is left over, whatever ``allowzero`` says
        freed = np.array([free, *shape[1:]], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(freed, name))
        node.input[1] = name
