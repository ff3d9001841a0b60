"""The joint product of queries, keys and values in a Q/DQ graph, written as the three products that it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["with_parted_products"]

_PARTS = 3
_SPLITTING = ("Reshape", "Shape")  # of (n, tokens, 3 * width), which attention splits; its sizes may be asked first


def with_parted_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a Q/DQ model with three products and a Concat in place of each joint one; computes the same.

    NVIDIA's compiler carries the split behind the joint product over to its weights, which it then dequantizes at every
    call, and multiplies in float16 (TensorRT for RTX 1.7). Of three products it makes one in INT8.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    stored = {i.name: i for i in graph.initializer}
    writers = {output: n for n in graph.node for output in n.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    added: set[str] = set()
    for node in graph.node:
        weight = writers.get(node.input[1]) if node.op_type == "MatMul" else None
        bias = _bias(node, weight, stored, readers) if weight is not None else None
        if weight is None or bias is None:
            nodes += [node] if node.output[0] not in added else []
            continue
        values = [numpy_helper.to_array(stored[name]) for name in (*weight.input, bias)]
        (sum_,) = readers[node.output[0]]
        nodes += _three(node, values, sum_.output[0], graph)
        added.add(sum_.output[0])
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _bias(
    node: onnx.NodeProto,
    weight: onnx.NodeProto,
    stored: dict[str, onnx.TensorProto],
    readers: dict[str, list[onnx.NodeProto]],
) -> str | None:
    """Name what is added to a joint product; None: it is none."""
    if weight.op_type != "DequantizeLinear" or any(name not in stored for name in weight.input):
        return None
    dims, behind = list(stored[weight.input[0]].dims), readers.get(node.output[0], [])
    if len(dims) != 2 or dims[1] != _PARTS * dims[0] or len(behind) != 1 or behind[0].op_type != "Add":
        return None
    if any(list(stored[name].dims) != dims[1:] for name in weight.input[1:]):
        return None  # one scale for all
    kinds = {n.op_type for n in readers.get(behind[0].output[0], [])}
    found = [n for n in behind[0].input if n in stored and list(stored[n].dims) == dims[1:]]
    return found[0] if found and "Reshape" in kinds and kinds <= {*_SPLITTING} else None


def _three(
    node: onnx.NodeProto, values: list[np.ndarray], joined: str, graph: onnx.GraphProto
) -> Iterator[onnx.NodeProto]:
    """The nodes; ``values`` are the weight's integers, what dequantizes them, and the bias."""
    parts = zip(*(np.split(v, _PARTS, axis=-1) for v in values), strict=True)
    outputs = []
    for k, part in enumerate(parts):
        name = f"{node.name}_part{k}"
        stored = [f"{name}_{i}" for i in range(len(part))]
        graph.initializer.extend(numpy_helper.from_array(v, n) for v, n in zip(part, stored, strict=True))
        yield helper.make_node("DequantizeLinear", stored[:-1], [f"{name}_dq"], f"{name}_dequantize", axis=1)
        yield helper.make_node("MatMul", [node.input[0], f"{name}_dq"], [f"{name}_product"], name)
        outputs.append(f"{name}_sum")
        yield helper.make_node("Add", [f"{name}_product", stored[-1]], outputs[-1:], f"{name}_add")
    yield helper.make_node("Concat", outputs, [joined], f"{node.name}_joined", axis=-1)
