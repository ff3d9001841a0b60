"""The logits of a model on some samples, and how far others are from them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

__all__ = ["logits", "noise"]


def logits(model: onnx.ModelProto, batch: np.ndarray, threads: int | None = None) -> np.ndarray:
    """What onnxruntime computes, float64 ``(batch, classes)``, each sample relative to its mean over the classes.

    A shift of all logits of a sample changes no softmax. Quantized models are computed as they are written, pair by
    pair: onnxruntime's own int8 kernels may round biases and saturate sums.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    entry = model.graph.input[0]
    dtype = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
    (values,) = session.run(None, {entry.name: np.ascontiguousarray(batch, dtype=dtype)})
    values = values.reshape(len(batch), -1).astype(np.float64)
    return values - values.mean(axis=1, keepdims=True) if values.shape[1] > 1 else values


def noise(changed: np.ndarray, reference: np.ndarray) -> float:
    """Squared error over signal, the inverse of the signal-to-quantization-noise ratio: 10^-4 is 40 dB."""
    return float(((changed - reference) ** 2).sum()) / (float((reference**2).sum()) or 1.0)
