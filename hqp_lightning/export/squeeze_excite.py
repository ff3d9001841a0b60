"""Squeeze-excite in an ONNX graph: which layers make a gate, and a Q/DQ model with these in float."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["gate_layers", "with_float_gates", "without_unread"]

_STEPS = 40  # nodes between a squeeze and its gate, at most; published blocks have four to nine, quantizers apart
_LAYERS = ("Conv", "Gemm", "MatMul")


def gate_layers(graph: onnx.GraphProto) -> set[str]:
    """Name the layers between a tensor's mean over its positions and the multiplication of that very tensor.

    Gates that are themselves quantized (``quantize_se``) are left out.
    """
    writers = {output: n for n in graph.node for output in n.output}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Mul" and len(node.input) == 2:
            first, second = node.input
            found |= _between(first, second, writers) | _between(second, first, writers)
    return found


def with_float_gates(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a Q/DQ model with its squeeze-excite layers in float; a float model comes back as it is.

    To an NVIDIA GPU each quantizer of a one-pixel tensor is a kernel of its own; to a CPU INT8 weights are the faster
    ones, which is why the file for all runtimes has them. Weights stay on their grid, the inputs lose their noise.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    stored = {i.name: i for i in graph.initializer}
    writers = {output: n for n in graph.node for output in n.output}
    gates = gate_layers(graph)
    for node in graph.node:
        pair = writers.get(node.input[0]) if node.name in gates else None
        if pair is None or pair.op_type != "DequantizeLinear" or pair.input[0] not in writers:
            continue
        node.input[0] = writers[pair.input[0]].input[0]
        weight = writers[node.input[1]]
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 0)
        integers, scale = (numpy_helper.to_array(stored[name]) for name in weight.input[:2])
        shape = [-1 if k == axis else 1 for k in range(integers.ndim)]
        values = integers.astype(np.float32) * scale.reshape(shape)
        graph.initializer.append(numpy_helper.from_array(values, f"{weight.output[0]}_float"))
        node.input[1] = f"{weight.output[0]}_float"
    return without_unread(changed)


def _between(gate: str, gated: str, writers: Mapping[str, onnx.NodeProto]) -> set[str]:
    if gated in writers and writers[gated].op_type == "DequantizeLinear":
        return set()
    passed: set[str] = set()
    for _ in range(_STEPS):
        node = writers.get(gate)
        if node is None:
            break
        if node.op_type in ("GlobalAveragePool", "ReduceMean"):
            return passed if node.input[0] == gated else set()
        if node.op_type in _LAYERS:
            passed.add(node.name)
        computed = (name for name in node.input if name in writers and writers[name].op_type != "Constant")
        gate = next(computed, "")
    return set()


def without_unread(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop nodes and stored tensors that nothing reads any more."""
    graph = model.graph
    while True:
        read = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
        kept = [n for n in graph.node if not read.isdisjoint(n.output)]
        if len(kept) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(kept)
    stored = [i for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(stored)
    return model
