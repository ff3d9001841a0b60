"""The outputs of a model on some samples, and how far others are from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper

from hqp_lightning.board.arrays import Arrays, each, sampled
from hqp_lightning.export.artifact import entries
from hqp_lightning.export.sessions import session

__all__ = ["Logits", "answered", "centred", "fed", "logits", "noise"]

Logits = tuple[np.ndarray, ...]
"""One array for each output."""


def logits(model: onnx.ModelProto, batch: Arrays, threads: int | None = None) -> Logits:
    """What onnxruntime computes, each output in float64 ``(batch, classes)`` relative to its mean over the classes.

    Of an output with positions, as of a segmentation, ``(batch, classes, positions)``: some of them (`sampled`).

    A shift of all logits of a sample changes no softmax. Quantized models are computed as they are written, pair by
    pair (`session`).
    """
    return answered(model.SerializeToString(), fed(model, batch), threads)


def fed(model: onnx.ModelProto, batch: Arrays) -> dict[str, np.ndarray]:
    """The batch by the names of the model's inputs, and in their types."""
    return {
        entry.name: np.ascontiguousarray(x, helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))
        for entry, x in zip(entries(model.graph), each(batch), strict=True)
    }


def answered(content: bytes, feed: Mapping[str, np.ndarray], threads: int | None = None) -> Logits:
    """`logits` of a model that is written already, so that its weights need not be in memory twice."""
    return centred(session(content, threads, as_written=True).run(None, dict(feed)))


def centred(outputs: Iterable[np.ndarray]) -> Logits:
    """What `logits` makes of a model's outputs."""
    found = (sampled(values).astype(np.float64) for values in outputs)
    return tuple(x - x.mean(axis=1, keepdims=True) if x.shape[1] > 1 else x for x in found)


def noise(changed: Logits, reference: Logits) -> float:
    """Squared error over signal, the inverse of the signal-to-quantization-noise ratio: 10^-4 is 40 dB.

    Of several outputs the mean: each counts alike, whatever its scale.
    """
    return float(np.mean([_noise(*pair) for pair in zip(changed, reference, strict=True)]))


def _noise(changed: np.ndarray, reference: np.ndarray) -> float:
    return float(((changed - reference) ** 2).sum()) / (float((reference**2).sum()) or 1.0)
