"""ONNX and ranges to an explicit Q/DQ ONNX.

The graph is edited here rather than by ``onnxruntime.quantization.QDQQuantizer``: that one quantizes a *tensor*
for all its readers, and both inputs of an Add, while the placement below is per *reader* (the residual input of an
Add only; the input of a pooling but not the gate beside it). Where both can express a graph, they agree.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hqp_lightning.core.calibration import LEAST_SCALE, Range
from hqp_lightning.core.rounding import mean_drift, rounded
from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import describe, load_model
from hqp_lightning.export.edits import Graph
from hqp_lightning.export.equalize import rescale_
from hqp_lightning.export.placement import Placement, placements
from hqp_lightning.records import OnnxArtifact

__all__ = ["insert_qdq_", "quantize"]

_WEIGHTS = 127  # symmetric int8: -127 ... 127
_BIAS = 2.0**30  # in steps of input times weight, half of what the int32 holds that onnxruntime makes of a bias
_LEAST_FLOAT16, _OTHERS = 2.0**-23, 2.0**-13  # the float16 form raises smaller scales, and not their integers


def quantize(
    onnx_path: str | os.PathLike[str],
    ranges: Mapping[str, Range],
    out_path: str | os.PathLike[str],
    *,
    exclude: Sequence[str] = (),
    quantize_hardswish: bool = False,
    quantize_se: bool = False,
) -> OnnxArtifact:
    """Write the Q/DQ model: weights symmetric int8 per output channel, stored as int8; float scales and bias.

    Activations are of the type of their ranges: symmetric int8 with zero point 0, or affine uint8. The scale of a
    nearly dead channel is no smaller than it has to be: its bias must fit an int32 in steps of ``s_x * s_w``. What the
    rounding of weights adds to an output on average, by the means of the ranges, comes off its bias.

    Args:
        onnx_path: a float model.
        ranges: tensor name to range, from `collect_ranges` on the same file.
        out_path: the file to write.
        exclude: names of nodes to keep in float.
        quantize_hardswish: see `hqp_lightning.export.placements`; as for `collect_ranges`.
        quantize_se: see there.

    Returns:
        The record of the written file, same opset and IR version as the float one.

    Raises:
        ExportError: a range is missing, or a name in ``exclude`` is no quantizable node.
    """
    placed = placements(onnx_path, exclude=exclude, quantize_hardswish=quantize_hardswish, quantize_se=quantize_se)
    model = insert_qdq_(load_model(onnx_path), placed, ranges)
    onnx.checker.check_model(model, full_check=True)
    Path(out_path).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out_path)
    return describe(out_path)


def insert_qdq_(model: onnx.ModelProto, placed: Iterable[Placement], ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """Put the quantizers into a float model, in place, and return it; factors and shifts of the ranges are carried out.

    Args:
        model: what `load_model` read.
        placed: where, from `placements` of that file, or some of them.
        ranges: tensor name to range.

    Raises:
        ExportError: a range is missing.
    """
    graph, placed = model.graph, list(placed)
    missing = sorted({p.tensor for p in placed} - set(ranges))
    if missing:
        raise ExportError(f"no range for tensor {missing[0]!r} ({len(missing)} missing): collect_ranges on this file")
    placed, ranges = rescale_(model, placed, ranges)
    ranges |= _of_maxima(graph.node, placed, ranges)
    places: dict[str, list[Placement]] = {}
    for place in placed:
        places.setdefault(place.node, []).append(place)
    stored = {i.name: i for i in graph.initializer}
    floors = _bias_floors(graph.node, stored, places, ranges)
    pairs: dict[tuple[str, int | None], str] = {}
    errors: dict[tuple[str, int | None], np.ndarray] = {}
    edits = Graph(model)
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        for place in places.get(node.name, ()):
            key: tuple[str, int | None] = (place.tensor, None)
            if key not in pairs:  # readers of one tensor share one pair
                pairs[key] = _add_activation(graph, nodes, place.tensor, ranges[place.tensor])
            node.input[place.index] = pairs[key]
            if place.weight_axis is not None:
                key = (node.input[1], place.weight_axis)
                if key not in pairs:
                    weight = stored[node.input[1]]
                    pairs[key], errors[key] = _add_weight(graph, nodes, weight, place.weight_axis, floors.get(key, 0.0))
                if means := ranges[place.tensor].means:
                    bias = edits.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
                    drift = mean_drift(errors[key], np.asarray(means))
                    edits.store_(node, 2, (0.0 if bias is None else bias) - drift, f"{node.name}_bias")
                node.input[1] = pairs[key]
        nodes.append(node)
    used = {name for n in nodes for name in n.input} | {o.name for o in graph.output}
    del graph.node[:]  # bounds that moved leave their old constants unread, of which onnxruntime warns at every load
    graph.node.extend(n for n in nodes if n.op_type != "Constant" or n.output[0] in used)
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


def _of_maxima(
    nodes: Iterable[onnx.NodeProto], placed: Iterable[Placement], ranges: Mapping[str, Range]
) -> dict[str, Range]:
    """Ranges of what is quantized for a MaxPool alone: those of what it writes.

    The largest of rounded values is the rounded largest one: with one range the second quantizer changes nothing, and
    runtimes leave it out.
    """
    readers = Counter(p.tensor for p in placed)
    found: dict[str, Range] = {}
    for node in reversed(list(nodes)):  # pools of pools, from the last one
        if node.op_type == "MaxPool" and readers[node.input[0]] == 1 and readers[node.output[0]]:
            found[node.input[0]] = found.get(node.output[0], ranges[node.output[0]])
    return found


def _add_activation(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], tensor: str, given: Range) -> str:
    zero_point = np.asarray(given.zero_point, given.activation_type)
    inputs = _parameters(graph, tensor, np.asarray(given.scale, np.float32), zero_point)
    nodes.append(helper.make_node("QuantizeLinear", [tensor, *inputs], [f"{tensor}_q"], f"{tensor}_quantize"))
    nodes.append(
        helper.make_node("DequantizeLinear", [f"{tensor}_q", *inputs], [f"{tensor}_dq"], f"{tensor}_dequantize")
    )
    return f"{tensor}_dq"


def _bias_floors(
    nodes: Iterable[onnx.NodeProto],
    stored: Mapping[str, onnx.TensorProto],
    places: Mapping[str, Sequence[Placement]],
    ranges: Mapping[str, Range],
) -> dict[tuple[str, int | None], np.ndarray]:
    """Weight and axis to the least scale of each channel with which the bias of every reader fits an int32."""
    floors: dict[tuple[str, int | None], np.ndarray] = {}
    for node in nodes:
        bias = stored.get(node.input[2]) if len(node.input) > 2 else None
        for place in places.get(node.name, ()):
            if bias is not None and place.weight_axis is not None:
                size = np.abs(numpy_helper.to_array(bias).reshape(-1)).astype(np.float64)
                least = size / (_BIAS * ranges[place.tensor].scale)
                key = (node.input[1], place.weight_axis)
                floors[key] = np.maximum(floors.get(key, 0.0), least)
    return floors


def _add_weight(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], weight: onnx.TensorProto, axis: int, floor: np.ndarray | float
) -> tuple[str, np.ndarray]:
    """The dequantized tensor's name, and its errors summed over kernels, of the outputs first."""
    values = numpy_helper.to_array(weight)
    others = tuple(k for k in range(values.ndim) if k != axis)
    amax = np.abs(values).max(axis=others).astype(np.float64)
    scale = np.where(amax > 0, amax, 1.0) / _WEIGHTS
    # Weights that weight decay drove to 1e-44 have no scale in float32, which TensorRT's parser refuses; steps so much
    # smaller than the largest channel's say nothing that is seen beside it.
    least = max(LEAST_SCALE, min(_LEAST_FLOAT16, _OTHERS * float(scale.max())))
    scale = np.maximum(scale, np.maximum(floor, least)).astype(np.float32)
    first = np.moveaxis(values, axis, 0)
    outputs = scale.reshape(-1, *[1] * (values.ndim - 1))
    integers = rounded(first / outputs, _WEIGHTS)
    errors = (integers * outputs - first).reshape(*first.shape[:2], -1).sum(2, dtype=np.float64)
    integers = np.moveaxis(integers, 0, axis)
    name = f"{weight.name}_axis{axis}"  # tied weights may be read along different axes
    graph.initializer.append(numpy_helper.from_array(integers.astype(np.int8), f"{name}_q"))
    inputs = [f"{name}_q", *_parameters(graph, name, scale, np.zeros(scale.shape, np.int8))]
    nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_dequantize", axis=axis))
    return f"{name}_dq", errors


def _parameters(graph: onnx.GraphProto, name: str, scale: np.ndarray, zero_point: np.ndarray) -> list[str]:
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(zero_point, f"{name}_zero_point"))
    return [f"{name}_scale", f"{name}_zero_point"]
