"""What a graph of another exporter leaves to be computed at every call, computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hqp_lightning.export.edits import Graph, attributes
from hqp_lightning.standalone.tidying import make_casts_

__all__ = ["fold_batchnorm_", "fold_constants_", "pool_"]

_NEVER = ("Dropout", "Bernoulli", "Multinomial", "QuantizeLinear", "DequantizeLinear")
_LARGEST = 1 << 26  # values of a constant that is worth storing
_EPSILON = 1e-5


def fold_constants_(model: onnx.ModelProto, opset: int) -> int:
    """Store what only constants go into, Constant nodes themselves too; how many nodes that were."""
    graph = Graph(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    make_casts_(graph, {**kinds, **{i.name: i.data_type for i in model.graph.initializer}})
    known: dict[str, np.ndarray] = {}
    kept = []
    for node in list(model.graph.node):
        stored = all(not n or n in known or n in graph.stored for n in node.input)
        fixed = node.op_type == "Constant" or (node.input and stored and not _random(node))
        values = _computed(node, graph, known, opset) if fixed and not graph.outputs & set(node.output) else None
        if values is None:
            kept.append(node)
        else:
            known.update(values)
    folded = len(model.graph.node) - len(kept)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for n in kept for name in n.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in known.items() if k in used)
    _drop_unused_(model)
    return folded


def _random(node: onnx.NodeProto) -> bool:
    return node.op_type in _NEVER or node.op_type.startswith("Random")


def _computed(
    node: onnx.NodeProto, graph: Graph, known: dict[str, np.ndarray], opset: int
) -> dict[str, np.ndarray] | None:
    """Its outputs by ONNX's own reference; None: it is better left as it is."""
    from onnx.reference import ReferenceEvaluator

    feeds = {n: known[n] if n in known else numpy_helper.to_array(graph.stored[n]) for n in node.input if n}
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
    alone = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs), opset_imports=[helper.make_opsetid("", opset)]
    )
    try:
        values = ReferenceEvaluator(alone).run(None, feeds)
    except Exception:  # an operator that the reference does not have: the runtime computes it
        return None
    arrays = [np.asarray(v) for v in values]
    if sum(a.size for a in arrays) > _LARGEST:
        return None
    return {o.name: a for o, a in zip(outputs, arrays, strict=True)}


def fold_batchnorm_(model: onnx.ModelProto) -> int:
    """Fold BatchNormalization into the convolution that it alone reads; how many were."""
    graph, folded = Graph(model), set[int]()
    for index, node in enumerate(model.graph.node):
        before = graph.producers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if before is None or before.op_type != "Conv" or before.output[0] in graph.outputs:
            continue
        constants = [*node.input[1:5], before.input[1], *(n for n in before.input[2:3] if n)]
        if len(graph.readers[before.output[0]]) > 1 or any(n not in graph.stored for n in constants):
            continue
        scale, shift, mean, variance = (
            numpy_helper.to_array(graph.stored[n]).astype(np.float64) for n in node.input[1:5]
        )
        factor = scale / np.sqrt(variance + attributes(node).get("epsilon", _EPSILON))
        weight = numpy_helper.to_array(graph.stored[before.input[1]])
        bias: Any = numpy_helper.to_array(graph.stored[before.input[2]]) if len(before.input) > 2 else 0.0
        name = before.name or before.output[0]
        graph.store_(before, 1, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), f"{name}_folded")
        graph.store_(before, 2, shift + (bias - mean) * factor, f"{name}_bias")
        before.output[0] = node.output[0]
        graph.producers[node.output[0]] = before
        folded.add(index)
    kept = [n for k, n in enumerate(model.graph.node) if k not in folded]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _drop_unused_(model)
    return len(folded)


def pool_(model: onnx.ModelProto) -> int:
    """Write means over height and width as the poolings that they are, so that INT8 rules know them; how many."""
    graph, made = Graph(model), 0
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*inferred.value_info, *inferred.input)}
    kept = []
    for node in model.graph.node:
        given = attributes(node) if node.op_type == "ReduceMean" else {}
        axes = graph.value(node.input[1]) if len(node.input) > 1 else given.get("axes")
        image = node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4
        if not image or axes is None or {int(a) % 4 for a in np.ravel(axes)} != {2, 3}:
            kept.append(node)
            continue
        made += 1
        flat, source = not given.get("keepdims", 1), node.input[0]
        out = f"{node.output[0]}_pooled" if flat else node.output[0]
        kept.append(helper.make_node("GlobalAveragePool", [source], [out], node.name))
        if flat:
            name = f"{node.name}_flat" if node.name else ""
            kept.append(helper.make_node("Flatten", [out], node.output, name, axis=1))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _drop_unused_(model)
    return made


def _drop_unused_(model: onnx.ModelProto) -> None:
    used = {name for n in model.graph.node for name in n.input} | {o.name for o in model.graph.output}
    kept = [i for i in model.graph.initializer if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
