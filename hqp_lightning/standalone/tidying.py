"""Names, types and aliases of a graph of another exporter; what it computes stays."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hqp_lightning.export.edits import Graph

__all__ = ["drop_aliases_", "make_casts_", "name_nodes_", "sort_nodes_", "widen_"]

_FLOAT, _FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
_SAME = ("Identity", "Dropout")  # a Dropout with one output, at inference


def name_nodes_(model: onnx.ModelProto) -> int:
    """Give every node a name of its own; how many had none, or another's."""
    taken, changed = {n.name for n in model.graph.node}, 0
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
            changed += 1
        seen.add(node.name)
    return changed


def sort_nodes_(model: onnx.ModelProto) -> None:
    """Put every node behind those that it reads: runtimes do so themselves, and ONNX's checker asks for it."""
    waiting, made = list(model.graph.node), {o for n in model.graph.node for o in n.output}
    done: list[onnx.NodeProto] = []
    while waiting:
        ready = []
        for node in waiting:
            if made.isdisjoint(node.input):
                ready.append(node)
                made.difference_update(node.output)
        if not ready:
            return  # a circle, which the checker tells
        done += ready
        taken = {id(n) for n in ready}
        waiting = [n for n in waiting if id(n) not in taken]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in done]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def drop_aliases_(model: onnx.ModelProto) -> None:
    """Take out nodes that hand on what they get, and casts to the type that is there."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    kinds |= {i.name: i.data_type for i in graph.initializer}
    outputs = {o.name for o in graph.output}
    alias: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = alias.get(name, name)
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        same = node.op_type in _SAME or (node.op_type == "Cast" and kinds.get(node.input[0]) == to)
        if same and sum(map(bool, node.output)) == 1 and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def widen_(model: onnx.ModelProto) -> bool:
    """Make float16 float32, everywhere; False: there is none."""
    graph = model.graph
    tensors = [*graph.initializer, *(a.t for n in graph.node for a in n.attribute if a.HasField("t"))]
    values = (*graph.input, *graph.output, *graph.value_info)
    found = [t for t in tensors if t.data_type == _FLOAT16]
    typed = [v.type.tensor_type for v in values if v.type.tensor_type.elem_type == _FLOAT16]
    if not found and not typed:
        return False
    for tensor in found:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for kind in typed:
        kind.elem_type = _FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == _FLOAT16:
                attribute.i = _FLOAT
    return True


def make_casts_(graph: Graph, kinds: dict[str, int]) -> None:
    """A CastLike is a Cast to the type of its second input, which need not be computed for it."""
    for node in graph.graph.node:
        if node.op_type == "CastLike" and (kind := kinds.get(node.input[1])):
            node.CopyFrom(helper.make_node("Cast", node.input[:1], node.output, node.name, to=kind))
