"""Whether a file in our form computes what the original does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hqp_lightning.errors import ExportError
from hqp_lightning.export.sessions import session
from hqp_lightning.standalone.reading import Reading

__all__ = ["check_same"]

_FLOAT32, _FLOAT16 = 1e-3, 3e-2  # of the largest logit
_SAMPLES = 3


def check_same(original: Path, reading: Reading, rewritten: Path, images: np.ndarray) -> None:
    """Run both on some images; the rewritten file on other batch sizes, too.

    Args:
        original: the file as it came.
        reading: what was read of it.
        rewritten: ``reading.model``, written.
        images: ``(n, *input_shape)``.

    Raises:
        ExportError: they differ, or one can't be run.
    """
    count = reading.batch or _SAMPLES
    batch = np.resize(images, (count, *images.shape[1:]))
    expected, found = _run(original, batch), _run(rewritten, batch)
    bound = (_FLOAT16 if reading.half else _FLOAT32) * max(1.0, float(np.abs(expected).max()))
    error = _largest(expected, found)
    if not error <= bound:
        raise ExportError(
            f"{original} in the form for INT8 computes something else (largest difference {error:.2g}): "
            f"{', '.join(reading.changes) or 'nothing was changed'}; export it again with "
            "torch.onnx.export(model, ..., dynamo=False, opset_version=17)"
        )
    if reading.batch is None:
        return
    try:
        error = _largest(_run(rewritten, batch[:1]), found[:1])
        error = max(error, _largest(_run(rewritten, np.concatenate([batch, batch[:1]]))[:count], found))
    except ExportError:
        error = float("inf")
    if not error <= bound:
        raise ExportError(
            f"{original} takes batches of {reading.batch} alone, and its graph holds that size in other places: export "
            "it with a dynamic batch axis"
        )


def _run(path: Path, batch: np.ndarray) -> np.ndarray:
    try:
        running = session(path)
        entry = running.get_inputs()[0]
        kind = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}.get(entry.type, np.float32)
        (found,) = running.run(None, {entry.name: np.ascontiguousarray(batch, dtype=kind)})
    except Exception as error:  # onnxruntime has its own types
        raise ExportError(f"onnxruntime can't run {path}: {str(error).strip().splitlines()[0]}") from error
    return np.asarray(found, np.float64)


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
