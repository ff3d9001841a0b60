"""Weights and sizes of paddings that a file computes from stored tensors, stored as what they come to."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = ["drop_unread_", "store_computed_"]

_FIXED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Pad")


def store_computed_(model: onnx.ModelProto) -> None:
    """Replace the nodes that make weights, biases and sizes of paddings out of stored tensors alone by their values.

    Weight standardisation leaves a BatchNormalization in training mode in the file, which TensorRT's parsers refuse;
    and a weight that is no stored tensor can't be quantized. Torch writes the sides of a ZeroPad2d as ten nodes.
    """
    graph = model.graph
    constant, writers = {i.name for i in graph.initializer}, {o: n for n in graph.node for o in n.output}
    for node in graph.node:  # topological order
        fixed = not node.op_type.startswith("Random") and not any(a.HasField("g") for a in node.attribute)
        if fixed and all(not name or name in constant for name in node.input):
            constant.update(node.output)
    wanted = [
        name
        for node in graph.node
        if node.op_type in _FIXED
        for name in node.input[1:]
        if name in constant and name in writers and writers[name].op_type != "Constant"
    ]
    if not wanted:
        return
    makers, waiting = set(), list(wanted)
    while waiting:
        writer = writers.get(waiting.pop())
        if writer is not None and writer.output[0] not in makers:
            makers.add(writer.output[0])
            waiting.extend(writer.input)
    nodes = [n for n in graph.node if n.output[0] in makers]
    read = {name for n in nodes for name in n.input}
    results = [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(wanted)]
    kept = [i for i in graph.initializer if i.name in read]
    part = helper.make_graph(nodes, "weights", [], results, kept)
    made = ReferenceEvaluator(helper.make_model(part, opset_imports=model.opset_import)).run(None, {})
    graph.initializer.extend(numpy_helper.from_array(v, r.name) for r, v in zip(results, made, strict=True))
    drop_unread_(graph, made={r.name for r in results})


def drop_unread_(graph: onnx.GraphProto, made: set[str]) -> None:
    """Take out the makers of some tensors, and the nodes and stored tensors that nothing reads any more."""
    left = [n for n in graph.node if made.isdisjoint(n.output)]
    needed = {o.name for o in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(left):
        if not needed.isdisjoint(node.output):
            needed.update(_read(node))
            nodes.append(node)
    tensors = [i for i in graph.initializer if i.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(tensors)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, also inside of the branches and loops that it holds."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read(inner)
