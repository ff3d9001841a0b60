"""What some releases of TensorRT are reported to refuse in a Q/DQ model, found in the file before any build."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hqp_lightning.board.onnx_graph import FLOAT, FLOAT16, Graph, Node, read_graph

__all__ = ["lint", "summary"]

_POINTWISE = {
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Mul",
    "Add",
    "Tanh",
    "Clip",
    "LeakyRelu",
    "Elu",
    "Mish",
    "Softplus",
}


def lint(onnx: Path) -> list[str]:
    """Name the chains that a release is known to refuse; no line, nothing found.

    - an INT8 depthwise convolution whose activation is no Relu and is quantized again: "could not find any
      implementation" on TensorRT 8.5 and Orin (NVIDIA/TensorRT issue 3385);
    - a dequantization with a float16 scale whose result is taken as float32: "could not infer output types" on
      TensorRT 10.16 and Orin (issue 4832).

    Raises:
        ExportError: no such file, or not ONNX.
    """
    graph = read_graph(onnx)
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(node)
    writers = {tensor: n for n in graph.nodes for tensor in n.outputs}
    dequantized = {n.outputs[0] for n in graph.nodes if n.op_type == "DequantizeLinear"}
    said = []
    for node in graph.nodes:
        if _depthwise(node, graph, writers) and node.inputs[0] in dequantized and _quantized_behind(node, graph):
            said.append(
                f"{node.name}: INT8 depthwise convolution, activation, quantizer: TensorRT 8.5 on Orin is reported to "
                "have no implementation (NVIDIA/TensorRT issue 3385); leave it in float"
            )
        if node.op_type == "DequantizeLinear" and graph.stored.get(node.inputs[1], (0, ()))[0] == FLOAT16:
            casts = [
                r for r in readers.get(node.outputs[0], ()) if r.op_type == "Cast" and r.integers.get("to") == FLOAT
            ]
            if casts or node.integers.get("output_dtype") == FLOAT:
                said.append(
                    f"{node.name}: float16 scale, float32 result: TensorRT 10.16 on Orin is reported to refuse it "
                    "(NVIDIA/TensorRT issue 4832); give it a float32 scale"
                )
    return said


def summary(onnx: Path) -> str:
    """How many nodes of each kind that matters to INT8, in one line."""
    graph = read_graph(onnx)
    kinds = Counter(n.op_type for n in graph.nodes)
    dequantized = {n.outputs[0] for n in graph.nodes if n.op_type == "DequantizeLinear"}
    layers = [n for n in graph.nodes if n.op_type in ("Conv", "Gemm", "MatMul")]
    int8 = sum(set(n.inputs[:2]) <= dequantized for n in layers)
    asked = f"{int8} of {len(layers)} layers asked to be INT8"
    return f"{len(graph.nodes)} nodes, {asked}, {kinds['QuantizeLinear']} quantizers"


def _depthwise(node: Node, graph: Graph, writers: dict[str, Node]) -> bool:
    """One input channel for each group; the weight is stored, or behind quantizers."""
    if node.op_type != "Conv" or node.integers.get("group", 1) == 1:
        return False
    weight = node.inputs[1]
    while weight not in graph.stored and weight in writers:
        weight = writers[weight].inputs[0]
    return graph.stored.get(weight, (0, (0, 0)))[1][1:2] == (1,)


def _quantized_behind(conv: Node, graph: Graph) -> bool:
    """Whether an activation of its own output alone, a Relu apart, stands between a convolution and a quantizer."""
    constants = {*graph.stored, *(n.outputs[0] for n in graph.nodes if n.op_type == "Constant")}
    own = set(conv.outputs)
    activated: set[str] = set()
    for node in graph.nodes:  # in the order in which they run
        inputs = set(node.inputs) - constants
        if node.op_type in _POINTWISE and inputs and inputs <= own:
            own.update(node.outputs)
            activated.update(node.outputs)
        elif node.op_type == "QuantizeLinear" and node.inputs[0] in activated:
            return True
    return False
