"""Where the quantizers stand in the graph: the inputs that TensorRT's INT8 fusions want quantized, and no others."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import load_model

__all__ = ["Placement", "layers_read", "placements", "quantized_tensors"]

_LINEAR = ("Gemm", "MatMul")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")
_SMALL = 1024  # values of a stored tensor: sizes and axes have fewer, and shapes depend on them


@dataclass(frozen=True, slots=True)
class Placement:
    """A quantized activation: input ``index`` of the node ``node``, which reads ``tensor``.

    ``weight_axis`` is the output-channel axis of the weight beside it (input 1), None where there is none.
    """

    node: str
    index: int
    tensor: str
    weight_axis: int | None = None


def placements(
    onnx_path: str | os.PathLike[str],
    *,
    exclude: Sequence[str] = (),
    quantize_hardswish: bool = False,
    quantize_se: bool = False,
) -> tuple[Placement, ...]:
    """Decide where the quantizers stand, for TensorRT's fusions.

    - inputs and weights of Conv, Gemm and MatMul with constant weights;
    - the *residual* input of an Add, that is the one with the shorter path from the model's input: the other comes
      straight from a convolution, and TensorRT adds in that convolution's epilogue if its output is not quantized;
      additions of sizes, which are integers or have no batch axis, are none, and those whose other input comes from no
      convolution stay in float: masks, and the residual stream of a transformer, where a quantizer saves next to
      nothing, and one scale would have to serve tokens of very different size;
    - inputs of poolings, except the squeeze of a squeeze-excite block: its input also feeds the Mul of the gate,
      which stays float, so a quantized copy of it would be extra work, and except poolings behind a padding of their
      own, which may be minus infinity.

    Outputs are not quantized; hard-swish, hard-sigmoid and gates stay float. ``docs/int8.md`` has the whole table.

    Args:
        onnx_path: a float model.
        exclude: names of nodes to keep in float, as they stand in the result's ``node``.
        quantize_hardswish: quantize the inputs of HardSwish nodes, too.
        quantize_se: quantize the squeeze's input and both inputs of the Mul of squeeze-excite blocks, too.

    Raises:
        ExportError: nodes without a name of their own, or a name in ``exclude`` is no quantizable node.
    """
    model = load_model(onnx_path)
    graph = model.graph
    if len({n.name for n in graph.node} - {""}) != len(graph.node):
        raise ExportError(f"{onnx_path} has nodes without a unique name: use a file written by export_onnx")
    weights = {i.name: len(i.dims) for i in graph.initializer}
    constants = {*weights, *(n.output[0] for n in graph.node if n.op_type == "Constant")}
    depth = dict.fromkeys(constants, 0)
    padded = {n.output[0] for n in graph.node if n.op_type == "Pad"}  # with minus infinity, before a maximum
    pooled = {n.input[0] for n in graph.node if n.op_type in _POOLS}
    gates = {n.name: n for n in graph.node if n.op_type == "Mul" and not pooled.isdisjoint(n.input)}
    squeezed = pooled & {name for n in gates.values() for name in n.input}
    alone = (*_POOLS, "HardSwish") if quantize_hardswish else _POOLS
    sizes = _sizes(model)
    writers = {output: n for n in graph.node for output in n.output}
    layers = {n.name: n.op_type for n in graph.node if n.op_type in ("Conv", *_LINEAR)}
    found: list[Placement] = []
    for node in graph.node:
        inputs = list(node.input)
        if node.name in layers:
            axis = _weight_axis(node, weights)
            if axis is not None:
                found.append(Placement(node.name, 0, inputs[0], axis))
        elif node.op_type == "Add" and constants.isdisjoint(inputs) and sizes.isdisjoint(inputs):
            index = min((1, 0), key=lambda k: depth.get(inputs[k], 0))
            kinds = {layers[name] for name in layers_read(inputs[1 - index], writers, layers)}
            if "Conv" in kinds:  # into whose epilogue the addition goes; the mask of an attention is made of none
                found.append(Placement(node.name, index, inputs[index]))
        elif node.op_type in alone and inputs[0] not in padded and (quantize_se or inputs[0] not in squeezed):
            found.append(Placement(node.name, 0, inputs[0]))
        elif quantize_se and node.name in gates:
            found.extend(Placement(node.name, k, name) for k, name in enumerate(inputs))
        for output in node.output:
            depth[output] = 1 + max((depth.get(name, 0) for name in inputs), default=0)
    unknown = sorted(set(exclude) - {p.node for p in found})
    if unknown:
        names = ", ".join(dict.fromkeys(p.node for p in found))
        raise ExportError(f"exclude names {unknown[0]!r}, which is no quantizable node; these are: {names}")
    return tuple(p for p in found if p.node not in exclude)


def quantized_tensors(onnx_path: str | os.PathLike[str], **options: Any) -> tuple[str, ...]:
    """Names of the activation tensors that need a range, each once, in graph order; options as of `placements`."""
    return tuple(dict.fromkeys(p.tensor for p in placements(onnx_path, **options)))


def layers_read(tensor: str, writers: Mapping[str, onnx.NodeProto], layers: Collection[str]) -> set[str]:
    """The nodes among ``layers`` that a tensor is made of through no other of them."""
    found, seen, waiting = set(), set(), [tensor]
    while waiting:
        writer = writers.get(waiting.pop())
        if writer is None or writer.name in seen or writer.op_type == "Shape":
            continue  # sizes are made of whatever tensor was at hand
        seen.add(writer.name)
        if writer.name in layers:
            found.add(writer.name)
        else:
            waiting.extend(writer.input)
    return found


def _weight_axis(node: onnx.NodeProto, weights: Mapping[str, int]) -> int | None:
    """Output-channel axis of a constant weight that no further use reshapes; None: leave the node in float."""
    if node.input[0] in weights or node.input[1] not in weights:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if weights[node.input[1]] == 2 else None


def _sizes(model: onnx.ModelProto) -> set[str]:
    """Tensors that can't be activations: not of floats, or of fewer than two axes. Those nobody can tell are not in it.

    Inferred without the weights: a copy of them would take as much memory as they do.
    """
    graph = model.graph
    light = onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            light.initializer.append(tensor)
        else:
            light.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(light, opset_imports=model.opset_import))
    known = {v.name: v.type.tensor_type for v in inferred.graph.value_info}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return {
        name
        for name, t in known.items()
        if t.elem_type not in (onnx.TensorProto.UNDEFINED, *floats) or (t.HasField("shape") and len(t.shape.dim) < 2)
    }
