"""Edits of a float graph that leave its function as it is: channels divided and shifted, readers that undo it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["Graph", "add_map_", "add_to_bias_", "attributes", "divide_"]

_HOMOGENEOUS = ("Relu", "LeakyRelu")
_ROUNDING = 1 + 1e-6


class Graph:
    """Who writes and who reads what, and the stored tensors, of a graph that is edited."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.outputs = {o.name for o in self.graph.output}
        self.stored = {i.name: i for i in self.graph.initializer}
        self.nodes = {n.name: n for n in self.graph.node}
        self.producers = {o: n for n in self.graph.node for o in n.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def value(self, name: str) -> np.ndarray | None:
        """The values of a constant, None of anything else."""
        if name in self.stored:
            return numpy_helper.to_array(self.stored[name])
        node = self.producers.get(name)
        return numpy_helper.to_array(node.attribute[0].t) if node is not None and node.op_type == "Constant" else None

    def store_(self, node: onnx.NodeProto, index: int, values: np.ndarray, name: str) -> None:
        """Give a node a stored input of its own; that of others, if the old one was shared, stays."""
        while len(node.input) <= index:
            node.input.append("")
        old = node.input[index]
        if old in self.stored and len(self.readers[old]) == 1:
            name = old
            self.stored[old].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
        else:
            self.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
            self.stored[name] = self.graph.initializer[-1]
            node.input[index], self.readers[name] = name, [node]

    def before_(self, readers: Iterable[onnx.NodeProto], op_type: str, tensor: str, by: np.ndarray) -> str:
        """Let some readers of a tensor read what ``op_type`` makes of it and a constant."""
        made, constant = f"{tensor}_{op_type.lower()}", f"{tensor}_{op_type.lower()}_by"
        first = {n.name for n in readers}
        self.graph.initializer.append(numpy_helper.from_array(by.astype(np.float32), constant))
        at = next(k for k, n in enumerate(self.graph.node) if n.name in first)
        self.graph.node.insert(at, helper.make_node(op_type, [tensor, constant], [made], made))
        for node in self.graph.node:
            if node.name in first:
                node.input[0] = made
        return made


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name to value."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def add_to_bias_(graph: Graph, node: onnx.NodeProto, shifts: np.ndarray, axis: int) -> None:
    """What shifts of its input are worth behind a layer without padding; ``axis``: of the output channels."""
    weight = np.moveaxis(numpy_helper.to_array(graph.stored[node.input[1]]).astype(np.float64), axis, 0)
    worth = weight.reshape(*weight.shape[:2], -1).sum(2) @ shifts
    bias = numpy_helper.to_array(graph.stored[node.input[2]]) if len(node.input) > 2 and node.input[2] else 0.0
    graph.store_(node, 2, bias + worth, f"{node.name}_bias")


def add_map_(graph: Graph, model: onnx.ModelProto, node: onnx.NodeProto, shifts: np.ndarray) -> None:
    """What shifts are worth behind a depthwise convolution: a bias inside, less where the kernel hangs over the edge.

    The padding is of zeros, which are not shifted. So that a sum with a constant image follows, zero but at the edges.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shape = next(v.type.tensor_type.shape for v in inferred.value_info if v.name == node.input[0])
    given = attributes(node)
    weight = numpy_helper.to_array(graph.stored[node.input[1]]).astype(np.float64)[:, 0]
    weight *= np.repeat(shifts, len(weight) // len(shifts))[:, None, None]
    inside = []
    for k, size in enumerate(d.dim_value for d in shape.dim[2:]):
        pads, kernel = given.get("pads", [0] * 4), weight.shape[1 + k]
        stride, dilation = given.get("strides", [1, 1])[k], given.get("dilations", [1, 1])[k]
        last = size + pads[k] + pads[2 + k] - dilation * (kernel - 1)
        at = np.arange(0, last, stride)[:, None] - pads[k] + dilation * np.arange(kernel)
        inside.append(((at >= 0) & (at < size)).astype(np.float64))
    whole = weight.sum((1, 2))
    bias = numpy_helper.to_array(graph.stored[node.input[2]]) if len(node.input) > 2 else 0.0
    graph.store_(node, 2, bias + whole, f"{node.name}_bias")
    edges = np.einsum("oyx,iy,jx->oij", weight, *inside) - whole[:, None, None]
    if not edges.any():
        return
    name, out = f"{node.name}_edges", node.output[0]
    node.output[0] = f"{out}_inside"
    graph.graph.initializer.append(numpy_helper.from_array(edges[None].astype(np.float32), name))
    at = next(k for k, n in enumerate(graph.graph.node) if n.name == node.name)
    graph.graph.node.insert(at + 1, helper.make_node("Add", [node.output[0], name], [out], f"{name}_add"))


def divide_(graph: Graph, tensor: str, factors: np.ndarray, top: float) -> bool:
    """Divide a tensor's channels where it is made, back through what is homogeneous; False: it can't be.

    ReLU6 is not, but the quantizer behind it clips each channel at the end of the range, which is no more than what
    was seen there: its bound may move to that end, if that is beyond the old one for no channel.
    """
    clip = None
    while tensor not in graph.outputs and len(graph.readers[tensor]) == 1 and tensor in graph.producers:
        node = graph.producers[tensor]
        if node.op_type in ("Conv", "BatchNormalization"):
            stored = [1, 2] if node.op_type == "BatchNormalization" or len(node.input) > 2 else [1]
            if any(node.input[k] not in graph.stored for k in stored):
                return False
            for k in stored:
                values = numpy_helper.to_array(graph.stored[node.input[k]])
                divided = values / factors.reshape(-1, *[1] * (values.ndim - 1))
                graph.store_(node, k, divided, f"{node.name}_divided{k}")
            if clip is not None:
                graph.store_(clip, 2, np.asarray(top), f"{clip.name}_top")
            return True
        if node.op_type == "Clip" and clip is None and len(node.input) > 2 and graph.value(node.input[1]) == 0:
            bound = graph.value(node.input[2])
            if bound is None or top * factors.max() > _ROUNDING * float(bound):
                return False
            clip = node
        elif node.op_type not in _HOMOGENEOUS:
            return False
        if (factors <= 0).any():
            return False
        tensor = node.input[0]
    return False
