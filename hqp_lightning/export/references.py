"""Logits to hold an engine against on the board, with the images that gave them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.board.arrays import Arrays, changed, each, sampled
from hqp_lightning.board.files import write_whole
from hqp_lightning.export.artifact import describe, feed
from hqp_lightning.export.sessions import session

__all__ = ["REFERENCES", "write_references"]

REFERENCES = "references.npz"
"""Its name beside the model."""


def write_references(
    path: str | os.PathLike[str],
    images: Arrays,
    float_path: str | os.PathLike[str],
    int8_path: str | os.PathLike[str],
    *,
    threads: int = 1,
) -> Path:
    """Run both models by onnxruntime, which computes a Q/DQ file as it is written, and store images and logits.

    Args:
        path: the ``.npz`` to write.
        images: ``(n, *shape)``, preprocessed, or one for each input; stored as float16, and what is stored is what is
            run. They are called ``images``, of several inputs ``input:NAME``.
        float_path: the float model; its logits are called ``float``, of several outputs ``float:NAME``.
        int8_path: the Q/DQ model; its logits are called ``int8``, or likewise. Of outputs with positions some are
            stored, see `hqp_lightning.board.arrays.sampled`.
        threads: onnxruntime's.

    Returns:
        The path.
    """
    entry = describe(int8_path)
    alone, one = len(entry.inputs) == 1, len(entry.outputs) == 1
    stored = changed(images, lambda x: x.astype(np.float16) if alone or x.dtype == np.float32 else x)
    names = ["images"] if alone else [f"input:{t.name}" for t in entry.inputs]
    content: dict[str, Any] = dict(zip(names, each(stored), strict=True))
    for name, model in (("float", float_path), ("int8", int8_path)):
        found = session(model, threads, as_written=True).run(None, feed(entry.inputs, stored))
        for output, values in zip(entry.outputs, found, strict=True):
            content[name if one else f"{name}:{output.name}"] = sampled(values).astype(np.float32)
    written = io.BytesIO()
    np.savez_compressed(written, **content)
    write_whole(Path(path), written.getvalue())
    return Path(path)
