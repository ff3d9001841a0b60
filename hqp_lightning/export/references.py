"""Logits to hold an engine against on the board, with the images that gave them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from hqp_lightning.board.files import write_whole
from hqp_lightning.export.artifact import describe

__all__ = ["REFERENCES", "write_references"]

REFERENCES = "references.npz"
"""Its name beside the model."""


def write_references(
    path: str | os.PathLike[str],
    images: np.ndarray,
    float_path: str | os.PathLike[str],
    int8_path: str | os.PathLike[str],
    *,
    threads: int = 1,
) -> Path:
    """Run both models by onnxruntime, which computes a Q/DQ file as it is written, and store images and logits.

    Args:
        path: the ``.npz`` to write.
        images: ``(n, *input_shape)``, preprocessed; stored as float16, and what is stored is what is run.
        float_path: the float model; its logits are called ``float``.
        int8_path: the Q/DQ model; its logits are called ``int8``.
        threads: onnxruntime's.

    Returns:
        The path.
    """
    import onnxruntime

    stored = images.astype(np.float16)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its own int8 kernels, which come with more, may round biases and saturate sums.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    logits = {}
    for name, model in (("float", float_path), ("int8", int8_path)):
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        entry = describe(model)
        (found,) = session.run(None, {entry.input_name: stored.astype(entry.input_dtype)})
        logits[name] = found.reshape(len(images), -1).astype(np.float32)
    content = io.BytesIO()
    np.savez_compressed(content, images=stored, **logits)
    write_whole(Path(path), content.getvalue())
    return Path(path)
