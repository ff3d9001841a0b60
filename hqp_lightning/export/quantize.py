"""ONNX and ranges to an explicit Q/DQ ONNX: where the quantizers stand, what ranges they get, how they are written.

The graph is edited here rather than by ``onnxruntime.quantization.QDQQuantizer``: that one quantizes a *tensor*
for all its readers, and both inputs of an Add, while the placement below is per *reader* (the residual input of an
Add only; the input of a pooling but not the gate beside it). Where both can express a graph, they agree.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from hqp_lightning.core import calibration
from hqp_lightning.errors import ExportError
from hqp_lightning.export.onnx import describe
from hqp_lightning.export.placement import Placement, load_model, placements, quantized_tensors
from hqp_lightning.records import OnnxArtifact

__all__ = ["DEFAULT_METHOD", "collect_ranges", "insert_qdq_", "quantize", "quantized_tensors"]

# Of the four the closest to float over both models of the table in docs/int8.md.
DEFAULT_METHOD = "mse"
"""How `collect_ranges` chooses a range; `hqp_lightning.core.calibration.METHODS` are the others."""

_PASS = 8  # samples whose activations are in memory at a time, however large the batches are


def collect_ranges(
    onnx_path: str | os.PathLike[str],
    batches: Iterable[np.ndarray],
    *,
    method: str = DEFAULT_METHOD,
    percentile: float = 99.99,
    threads: int | None = None,
    quantize_hardswish: bool = False,
    quantize_se: bool = False,
) -> dict[str, float]:
    """Run the float model over calibration batches and return a clipping range for every quantized tensor.

    The activations of a few samples at a time are in memory, beside one histogram a tensor.

    Args:
        onnx_path: a float model.
        batches: arrays ``(batch, *input_shape)`` as the model takes them, preprocessed.
        method: see `hqp_lightning.core.calibration.compute_amax`.
        percentile: for ``method="percentile"``.
        threads: onnxruntime's threads; None: its own default.
        quantize_hardswish: see `hqp_lightning.export.placements`.
        quantize_se: see there.

    Returns:
        Tensor name to ``amax``: the tensor is quantized on ``[-amax, amax]``.

    Raises:
        ExportError: no batches, or a batch of the wrong shape.
        ConfigurationError: unknown method, or an activation is NaN or infinite.
    """
    import onnxruntime

    artifact = describe(onnx_path)
    model = load_model(onnx_path)
    names = quantized_tensors(onnx_path, quantize_hardswish=quantize_hardswish, quantize_se=quantize_se)
    inner = [name for name in names if name != artifact.input_name]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in inner
        if name != artifact.output_name
    )
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    # Its threads would go on spinning while the activations are counted, on the cores that count them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    histograms = {name: calibration.init() for name in names}
    seen = 0
    for batch in batches:
        if batch.shape[1:] != artifact.input_shape:
            raise ExportError(f"calibration batch has shape {batch.shape}, expected (batch, *{artifact.input_shape})")
        for part in np.array_split(batch, max(1, math.ceil(len(batch) / _PASS))):
            part = np.ascontiguousarray(part, dtype=np.float32)
            values = dict(zip(inner, session.run(inner, {artifact.input_name: part}), strict=True)) if inner else {}
            values[artifact.input_name] = part
            for name in names:
                # popped and converted one by one, so that the activations are freed as they are counted
                histograms[name] = calibration.update(histograms[name], torch.from_numpy(values.pop(name)))
        seen += len(batch)
    if not seen:
        raise ExportError("no calibration batches: pass an iterable that yields at least one (is it used up already?)")
    return {n: calibration.compute_amax(h, method, percentile=percentile) for n, h in histograms.items()}


def quantize(
    onnx_path: str | os.PathLike[str],
    ranges: Mapping[str, float],
    out_path: str | os.PathLike[str],
    *,
    exclude: Sequence[str] = (),
    quantize_hardswish: bool = False,
    quantize_se: bool = False,
) -> OnnxArtifact:
    """Write the Q/DQ model: symmetric int8, zero point 0, per-channel weights stored as int8, float scales and bias.

    Args:
        onnx_path: a float model.
        ranges: tensor name to clipping range, from `collect_ranges` on the same file.
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


def insert_qdq_(model: onnx.ModelProto, placed: Iterable[Placement], ranges: Mapping[str, float]) -> onnx.ModelProto:
    """Put the quantizers into a float model, in place, and return it.

    Args:
        model: what `load_model` read.
        placed: where, from `placements` of that file, or some of them.
        ranges: tensor name to clipping range.

    Raises:
        ExportError: a range is missing.
    """
    graph = model.graph
    places: dict[str, list[Placement]] = {}
    for place in placed:
        places.setdefault(place.node, []).append(place)
    missing = sorted({p.tensor for at_node in places.values() for p in at_node} - set(ranges))
    if missing:
        raise ExportError(f"no range for tensor {missing[0]!r} ({len(missing)} missing): collect_ranges on this file")
    stored = {i.name: i for i in graph.initializer}
    pairs: dict[tuple[str, int | None], str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        for place in places.get(node.name, ()):
            key: tuple[str, int | None] = (place.tensor, None)
            if key not in pairs:  # readers of one tensor share one pair
                scale = np.float32(calibration.scale(ranges[place.tensor]))
                pairs[key] = _add_activation(graph, nodes, place.tensor, np.asarray(scale))
            node.input[place.index] = pairs[key]
            if place.weight_axis is not None:
                key = (node.input[1], place.weight_axis)
                if key not in pairs:
                    pairs[key] = _add_weight(graph, nodes, stored[node.input[1]], place.weight_axis)
                node.input[1] = pairs[key]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for n in nodes for name in n.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


def _add_activation(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], tensor: str, scale: np.ndarray) -> str:
    inputs = _parameters(graph, tensor, scale)
    nodes.append(helper.make_node("QuantizeLinear", [tensor, *inputs], [f"{tensor}_q"], f"{tensor}_quantize"))
    nodes.append(
        helper.make_node("DequantizeLinear", [f"{tensor}_q", *inputs], [f"{tensor}_dq"], f"{tensor}_dequantize")
    )
    return f"{tensor}_dq"


def _add_weight(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], weight: onnx.TensorProto, axis: int) -> str:
    values = numpy_helper.to_array(weight)
    others = tuple(k for k in range(values.ndim) if k != axis)
    amax = np.abs(values).max(axis=others)
    scale = np.where(amax > 0, amax, 1.0).astype(np.float32) / np.float32(calibration.LEVELS)
    shape = [-1 if k == axis else 1 for k in range(values.ndim)]
    integers = np.clip(np.round(values / scale.reshape(shape)), -calibration.LEVELS, calibration.LEVELS)
    name = f"{weight.name}_axis{axis}"  # tied weights may be read along different axes
    graph.initializer.append(numpy_helper.from_array(integers.astype(np.int8), f"{name}_q"))
    inputs = [f"{name}_q", *_parameters(graph, name, scale)]
    nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_dequantize", axis=axis))
    return f"{name}_dq"


def _parameters(graph: onnx.GraphProto, name: str, scale: np.ndarray) -> list[str]:
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}_zero_point"))
    return [f"{name}_scale", f"{name}_zero_point"]
