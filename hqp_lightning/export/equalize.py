"""Ranges with factors or a shift, carried out in a float graph: it computes the same, and what is quantized is even.

- **Factors** (inputs of depthwise convolutions): every channel is divided by its own, and the weights that read it are
  multiplied by it. The division costs nothing where it goes back through ReLU into the convolution before; else it is a
  multiplication behind an activation, which runtimes fuse with it.
- **Shifts** (inputs of convolutions without padding, behind a convolution, whose bias takes them, or an activation that
  is a kernel anyway): int8 is symmetric and a hard-swish is not, so that nearly half of the levels are never used.
  Subtract the middle of every channel, and add what it is worth to the bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from hqp_lightning.core.calibration import Range
from hqp_lightning.export.edits import Graph, add_map_, add_to_bias_, attributes, divide_
from hqp_lightning.export.placement import Placement

__all__ = ["by_tensor", "centrable", "correctable", "equalizable", "input_channels", "rescale_", "shiftable"]

# Kernels that a subtraction joins. Not ReLU: convolutions end with it, and the subtraction would be a kernel more.
_POINTWISE = ("HardSwish", "Mul", "Elu", "Gelu", "Mish")


def equalizable(model: onnx.ModelProto, placed: Iterable[Placement]) -> dict[str, int]:
    """Tensors that may have factors, and their number of channels.

    Their quantized readers with weights are depthwise convolutions; readers without (a residual addition, a pooling)
    stay in float where factors are used, since they would have to undo them.
    """
    graph, found = Graph(model), {}
    for tensor, places in by_tensor(placed).items():
        weighted = [graph.nodes[p.node] for p in places if p.weight_axis is not None]
        channels = {_depthwise_channels(graph, node) for node in weighted}
        if len(channels) == 1 and (count := channels.pop()):
            found[tensor] = count
    return found


def shiftable(model: onnx.ModelProto, placed: Iterable[Placement]) -> dict[str, int]:
    """Tensors that may have shifts, and their number of channels.

    They come from an activation, or from a convolution that nothing else reads, and all of their quantized readers have
    weights and no padding.
    """
    graph, found = Graph(model), {}
    for tensor, places in by_tensor(placed).items():
        before = graph.producers.get(tensor)
        if before is None or not (before.op_type in _POINTWISE or _takes_it_back(graph, tensor, places)):
            continue
        channels = {_unpadded_channels(graph, graph.nodes[p.node], p.weight_axis) for p in places}
        if len(channels) == 1 and (count := channels.pop()):
            found[tensor] = count
    return found


def correctable(model: onnx.ModelProto, placed: Iterable[Placement]) -> list[str]:
    """Tensors of which every quantized reader with weights has a bias that is stored, or can have one."""
    graph, found = Graph(model), []
    for tensor, places in by_tensor(placed).items():
        weighted = [graph.nodes[p.node] for p in places if p.weight_axis is not None]
        if weighted and all(_has_bias(graph, node) for node in weighted):
            found.append(tensor)
    return found


def rescale_(
    model: onnx.ModelProto, placed: Iterable[Placement], ranges: Mapping[str, Range]
) -> tuple[list[Placement], dict[str, Range]]:
    """Carry out the factors and shifts of the tensors that ``placed`` quantizes, in place.

    Args:
        model: a float model.
        placed: where quantizers will stand.
        ranges: tensor name to range.

    Returns:
        Where quantizers stand now, and the ranges of what they round; none has factors or a shift, means are of that.
    """
    placed, ranges = list(placed), dict(ranges)
    for tensor, places in by_tensor(placed).items():
        given = ranges.get(tensor)
        if given is None or not (given.factors or given.shifts):
            continue
        graph = Graph(model)
        readers = [graph.nodes[p.node] for p in places if p.weight_axis is not None]
        made = tensor
        if given.factors:
            placed = [p for p in placed if p.tensor != tensor or p.weight_axis is not None]
            if not readers:
                continue
        if given.shifts:
            shifts = np.asarray(given.shifts)
            for node, axis in [(graph.nodes[p.node], p.weight_axis) for p in places if p.weight_axis is not None]:
                if _depthwise_channels(graph, node):
                    add_map_(graph, model, node, shifts)
                else:
                    add_to_bias_(graph, node, shifts, axis)
            if _takes_it_back(graph, tensor, places):
                before = graph.producers[tensor]
                bias = numpy_helper.to_array(graph.stored[before.input[2]])
                graph.store_(before, 2, bias - shifts, f"{before.name}_centred")
            else:
                dims = len(graph.stored[readers[0].input[1]].dims) - 2
                made = graph.before_(readers, "Sub", made, shifts.reshape(1, -1, *[1] * dims))
        if given.factors:
            factors = np.asarray(given.factors)
            for node, axis in [(graph.nodes[p.node], p.weight_axis) for p in places if p.weight_axis is not None]:
                weight = numpy_helper.to_array(graph.stored[node.input[1]])
                if _depthwise_channels(graph, node):
                    each, at = np.repeat(factors, len(weight) // len(factors)), 0
                else:
                    each, at = factors, 1 - axis
                shape = [-1 if k == at else 1 for k in range(weight.ndim)]
                graph.store_(node, 1, weight * each.reshape(shape), f"{node.name}_weight")
            if (
                made != tensor
                or len(readers) < len(graph.readers[tensor])
                or not divide_(graph, made, factors, given.high)
            ):
                dims = len(graph.stored[readers[0].input[1]].dims) - 2
                made = graph.before_(readers, "Mul", made, (1 / factors).reshape(1, -1, *[1] * dims))
        moved = {p.node for p in places}
        placed = [replace(p, tensor=made) if p.tensor == tensor and p.node in moved else p for p in placed]
        means = given.means and (np.asarray(given.means) - (given.shifts or 0.0)) / (given.factors or 1.0)
        ranges[made] = Range(given.low, given.high, given.activation_type, means=tuple(means))
    return placed, ranges


def by_tensor(placed: Iterable[Placement]) -> dict[str, list[Placement]]:
    """The places of every tensor."""
    found: dict[str, list[Placement]] = {}
    for place in placed:
        found.setdefault(place.tensor, []).append(place)
    return found


def _depthwise_channels(graph: Graph, node: onnx.NodeProto) -> int:
    """Number of input channels of a depthwise convolution; 0: it is none."""
    weight = graph.stored.get(node.input[1])
    group = attributes(node).get("group", 1)
    if node.op_type != "Conv" or weight is None or not isinstance(group, int) or group < 2:
        return 0
    return group if weight.dims[1] == 1 and weight.dims[0] % group == 0 else 0


def _unpadded_channels(graph: Graph, node: onnx.NodeProto, axis: int | None) -> int:
    """Number of channels that a convolution or linear layer reads if it can take shifts into its bias, else 0."""
    given = attributes(node)
    padded = np.any(given.get("pads", [0])) or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    return 0 if padded or not _has_bias(graph, node) else input_channels(graph, node, axis)


def _has_bias(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether it is stored, or there is none and a place for it."""
    stored = len(node.input) < 3 or not node.input[2] or node.input[2] in graph.stored
    return stored and (node.op_type == "Conv" or _plain(node))


def _plain(node: onnx.NodeProto) -> bool:
    given = attributes(node)
    one = (given.get("alpha", 1.0), given.get("beta", 1.0)) == (1.0, 1.0)
    return node.op_type == "Gemm" and one and not given.get("transA", 0)


def input_channels(graph: Graph, node: onnx.NodeProto, axis: int | None) -> int:
    """Number of channels that an ungrouped convolution or a plain linear layer reads, else 0."""
    given = attributes(node)
    if axis is None:
        return 0
    shape = graph.stored[node.input[1]].dims
    if node.op_type == "Conv":
        return 0 if given.get("group", 1) != 1 else shape[1]
    return shape[1 - axis] if _plain(node) else 0


def _takes_it_back(graph: Graph, tensor: str, places: Iterable[Placement]) -> bool:
    """A convolution with a bias, and every reader of what it makes is one of the places."""
    node = graph.producers.get(tensor)
    if node is None or node.op_type != "Conv" or len(node.input) < 3 or node.input[2] not in graph.stored:
        return False
    return tensor not in graph.outputs and {n.name for n in graph.readers[tensor]} == {p.node for p in places}


def centrable(model: onnx.ModelProto, placed: Iterable[Placement], tensor: str) -> bool:
    """Whether an equalizable tensor may have shifts, too: behind an activation, in front of 2-d convolutions."""
    graph = Graph(model)
    readers = [graph.nodes[p.node] for p in placed if p.tensor == tensor and p.weight_axis is not None]
    before = graph.producers.get(tensor)
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    sizes = next((list(v.type.tensor_type.shape.dim)[2:] for v in inferred if v.name == tensor), [])
    return (
        before is not None
        and before.op_type in _POINTWISE
        and len(sizes) == 2
        and all(d.dim_value for d in sizes)  # the image of the edges is a constant
        and all(
            len(graph.stored[n.input[1]].dims) == 4
            and (len(n.input) < 3 or n.input[2] in graph.stored)
            and attributes(n).get("auto_pad", b"NOTSET") == b"NOTSET"
            for n in readers
        )
    )
