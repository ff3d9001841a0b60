"""MACs and parameters of an ONNX graph."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

__all__ = ["macs", "parameters"]


def macs(model: onnx.ModelProto) -> float:
    """Multiply-accumulates of the convolutions and linear layers, for one sample, where shapes are known."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    weights = {i.name: tuple(i.dims) for i in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if len(node.input) > 1 else None
        outputs = shapes.get(node.output[0], [])[1:]
        if weight is None or not outputs or not all(outputs):
            continue
        if node.op_type == "Conv":
            total += math.prod(outputs) * math.prod(weight[1:])
        elif node.op_type == "Gemm":
            total += math.prod(weight)
        elif node.op_type == "MatMul":
            total += math.prod(outputs) * weight[-2]
    return float(total)


def parameters(model: onnx.ModelProto) -> int:
    """Values of the stored float tensors."""
    return sum(math.prod(i.dims) for i in model.graph.initializer if i.data_type == TensorProto.FLOAT)
