"""What is wrong with a layer of a file, as far as its numbers tell."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from hqp_lightning.core.agreement import Agreement, order
from hqp_lightning.export.edits import Graph, attributes

__all__ = ["overflows", "reading_order", "words"]

LOOKED = 0.01
"""20 dB: a layer that is so noisy by itself is looked at for the order of its inputs."""
_LOUD = 0.1  # 10 dB, of a layer alone: no eight bits do that
_CHANNEL = 0.04  # 14 dB of one channel, if factors and shifts explain it
_QUIET = 0.05  # of the mean signal: channels with less are measured against it
_EXPLAINED = 0.05  # of the error, left by them
_NAMED = 3
_INT32 = 2.0**31


def words(
    alone: Agreement,
    order: np.ndarray | None,
    quantized: Agreement | None,
    overflowing: int,
    reading: np.ndarray | None = None,
) -> str:
    """Name the fault of a layer and of the quantizer behind it; empty: none.

    Args:
        alone: what the layer makes of the right tensors, beside what it should make.
        order: from `hqp_lightning.core.agreement.order`.
        quantized: what the quantizer makes of the right tensor.
        overflowing: channels whose bias overflows.
        reading: from `reading_order`.
    """
    said = []
    if order is not None:
        said.append(f"channels in another order: {_moved(order)}")
    elif reading is not None:
        said.append(f"reads its input's channels in another order: {_moved(reading)}")
    elif text := _systematic(alone):
        said.append(text)
    elif alone.noise > _LOUD:
        said.append("computes something else")
    if quantized is not None and quantized.noise > _LOUD:
        said.append("the scale of the quantizer behind it does not fit")
    if overflowing:
        plural = "" if overflowing == 1 else "s"
        said.append(f"bias of {overflowing} channel{plural} beyond int32 in steps of input times weight")
    return "; ".join(said)


def reading_order(a: onnx.ModelProto, b: onnx.ModelProto, made_a: str, made_b: str) -> np.ndarray | None:
    """Which input channel of a layer each one of the other file's layer is read as, if these are in another order.

    Args:
        a: the file that is right.
        b: the file in question.
        made_a: what the layer makes in the first.
        made_b: the same in the second.
    """
    first, second = _weight(a, made_a), _weight(b, made_b)
    if first is None or second is None or first.shape != second.shape or first.shape[1] < 2:
        return None
    return order(first, second)


def _weight(model: onnx.ModelProto, made: str) -> np.ndarray | None:
    """Of a layer that reads all channels, ``(outputs, inputs, ...)``: filters of norm one, as folding scales them."""
    graph = Graph(model)
    node = graph.producers.get(made)
    given = attributes(node) if node is not None else {}
    if node is None or not (node.op_type == "Conv" or (node.op_type == "Gemm" and given.get("transB"))):
        return None
    behind = graph.producers.get(node.input[1])
    rounded = behind is not None and behind.op_type == "DequantizeLinear"
    weight = graph.value(behind.input[0] if behind is not None and rounded else node.input[1])
    if weight is None or given.get("group", 1) != 1:
        return None
    filters = weight.reshape(len(weight), -1).astype(np.float64)
    filters /= np.maximum(np.linalg.norm(filters, axis=1, keepdims=True), 1e-300)
    return filters.reshape(weight.shape)


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


def _moved(order: np.ndarray) -> str:
    return _list([f"{order[k]} at {k}" for k in np.flatnonzero(order != np.arange(len(order)))])


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
