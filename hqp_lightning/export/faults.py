"""What is wrong with a layer of a file, as far as its numbers tell."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from hqp_lightning.core.agreement import Agreement

__all__ = ["overflows", "words"]

_LOUD = 0.1  # 10 dB, of a layer alone: no eight bits do that
_CHANNEL = 0.04  # 14 dB of one channel, if factors and shifts explain it
_QUIET = 0.05  # of the mean signal: channels with less are measured against it
_EXPLAINED = 0.05  # of the error, left by them
_NAMED = 3
_INT32 = 2.0**31


def words(alone: Agreement, order: np.ndarray | None, quantized: Agreement | None, overflowing: int) -> str:
    """Name the fault of a layer and of the quantizer behind it; empty: none.

    Args:
        alone: what the layer makes of the right tensors, beside what it should make.
        order: from `hqp_lightning.core.agreement.order`.
        quantized: what the quantizer makes of the right tensor.
        overflowing: channels whose bias overflows.
    """
    said = []
    if order is not None:
        moved = np.flatnonzero(order != np.arange(len(order)))
        said.append(f"channels in another order: {_list([f'{order[k]} at {k}' for k in moved])}")
    elif text := _systematic(alone):
        said.append(text)
    elif alone.noise > _LOUD:
        said.append("computes something else")
    if quantized is not None and quantized.noise > _LOUD:
        said.append("the scale of the quantizer behind it does not fit")
    if overflowing:
        said.append(f"bias of {overflowing} channels beyond int32 in steps of input times weight")
    return "; ".join(said)


def _systematic(sums: Agreement) -> str:
    """Channels that are as they should be, but for a factor or a shift."""
    error, left = sums.error, sums.unexplained
    mean = float(sums.aa.mean()) or 1.0
    wrong = np.flatnonzero((error > _CHANNEL * np.maximum(sums.aa, _QUIET * mean)) & (left < _EXPLAINED * error))
    if not len(wrong):
        return ""
    shifted = sums.count * ((sums.b - sums.a) / max(sums.count, 1)) ** 2
    shift = wrong[shifted[wrong] > (1 - _EXPLAINED) * error[wrong]]
    scale = np.setdiff1d(wrong, shift)
    said = []
    if len(scale):
        said.append(f"scale of {_share(scale, error)}: {_list([f'{k} times {sums.factors[k]:.3g}' for k in scale])}")
    if len(shift):
        moved = (sums.b - sums.a) / sums.count
        said.append(f"bias of {_share(shift, error)}: {_list([f'{k} by {moved[k]:.3g}' for k in shift])}")
    return "; ".join(said)


def _share(found: np.ndarray, channels: np.ndarray) -> str:
    return f"{len(found)} of {len(channels)} channels"


def _list(parts: list[str]) -> str:
    return ", ".join(parts[:_NAMED]) + " ..." * (len(parts) > _NAMED)


def overflows(model: onnx.ModelProto) -> dict[str, int]:
    """Node to the number of channels whose float bias does not fit an int32, where a runtime may make it one."""
    graph = model.graph
    stored = {i.name: i for i in graph.initializer}
    pairs = {n.output[0]: n.input for n in graph.node if n.op_type == "DequantizeLinear"}
    found = {}
    for node in graph.node:
        inputs = list(node.input)
        if node.op_type not in ("Conv", "Gemm") or len(inputs) < 3 or inputs[2] not in stored:
            continue
        scales = [pairs[n][1] for n in inputs[:2] if n in pairs and pairs[n][1] in stored]
        if len(scales) == 2:
            of_input, of_weight = (numpy_helper.to_array(stored[n]).astype(np.float64).ravel() for n in scales)
            bias = np.abs(numpy_helper.to_array(stored[inputs[2]]).astype(np.float64).ravel())
            if count := int((bias > _INT32 * of_input * of_weight).sum()):
                found[node.name] = count
    return found
