"""Padding of its own in front of a convolution, which TensorFlow's convolutions bring along, taken into it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from hqp_lightning.export.computed import drop_unread_
from hqp_lightning.export.edits import Graph, attributes

__all__ = ["fold_padding_"]


def fold_padding_(model: onnx.ModelProto) -> int:
    """Let convolutions pad with the zeros that Pad nodes put around what they alone read; how many nodes were.

    Such a node is a kernel in every engine, a quantizer stands behind it, and nothing can be taken back through it into
    the layer before. Convolutions pad each side by itself as well.
    """
    graph, folded = Graph(model), set[str]()
    for node in reversed(list(model.graph.node)):  # of two in a row the one at the convolution first
        readers = graph.readers.get(node.output[0], [])
        if node.op_type != "Pad" or node.output[0] in graph.outputs or not readers:
            continue
        added = _zeros(graph, node) or []
        own = [pads for n in readers if len(pads := _pads(graph, n, node.output[0])) == len(added) > 0]
        if len(own) < len(readers):
            continue
        for reader, pads in zip(readers, own, strict=True):
            kept = [a for a in reader.attribute if a.name not in ("pads", "auto_pad")]
            del reader.attribute[:]
            reader.attribute.extend([*kept, helper.make_attribute("pads", np.add(pads, added).tolist())])
            reader.input[0] = node.input[0]
        graph.readers[node.input[0]] = [n for n in graph.readers[node.input[0]] if n.name != node.name] + readers
        folded.add(node.output[0])
    if folded:
        drop_unread_(model.graph, made=folded)
    return len(folded)


def _zeros(graph: Graph, node: onnx.NodeProto) -> list[int] | None:
    """What a Pad puts before and behind height, width ...; None: something else than zeros, or at other axes."""
    value = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    pads = graph.value(node.input[1])
    if attributes(node).get("mode", b"constant") != b"constant" or len(node.input) > 3 or pads is None:
        return None
    if value is None or value.any() or pads.min(initial=0) < 0:
        return None
    before, behind = np.split(pads, 2)
    return None if before[:2].any() or behind[:2].any() else [*before[2:].tolist(), *behind[2:].tolist()]


def _pads(graph: Graph, reader: onnx.NodeProto, tensor: str) -> list[int]:
    """Those of a convolution that reads the tensor as its image; empty: it is none."""
    given, weight = attributes(reader), graph.stored.get(reader.input[1]) if len(reader.input) > 1 else None
    if reader.op_type != "Conv" or weight is None or list(reader.input).count(tensor) != 1 or reader.input[0] != tensor:
        return []
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return []
    return list(given.get("pads", [0] * 2 * (len(weight.dims) - 2)))
