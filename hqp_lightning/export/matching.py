"""Which tensors of two files of one network are the same, and a file cut at them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hqp_lightning.core.calibration import Range
from hqp_lightning.errors import ExportError

__all__ = ["Pair", "Quantizer", "cut", "match", "sources", "with_outputs"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
MADE = ":made"
"""Behind the name of a tensor that a cut file makes, while its readers are given another."""


@dataclass(frozen=True)
class Quantizer:
    """The pair of nodes behind a tensor: it rounds ``source`` to ``output``, and holds ``low`` to ``high``.

    ``source`` is another than the tensor where that is multiplied or shifted first.
    """

    source: str
    output: str
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """A tensor ``a`` of the first file that is ``b`` in the second, made there by ``layer``."""

    a: str
    b: str
    layer: str
    operator: str
    quantizer: Quantizer | None = None


def match(a: onnx.ModelProto, b: onnx.ModelProto) -> tuple[list[Pair], str]:
    """Pair the float activations, and say by what: ``"name"``, or ``"position"`` where the layers have other names.

    Args:
        a: a float file.
        b: another, float or Q/DQ; what its quantizers give is no tensor of its own.

    Raises:
        ExportError: nothing of them is the same.
    """
    kinds_a, kinds_b = _float_tensors(a), _float_tensors(b)
    nodes_a, nodes_b = ([n for n in m.graph.node if n.op_type not in _QDQ] for m in (a, b))
    made = {o for n in nodes_a for o in n.output}
    layers = [n.output[0] for n in nodes_b if n.op_type in _LAYERS]
    if layers and sum(name in made for name in layers) >= 0.5 * len(layers):
        found = [(o, o, n) for n in nodes_b for o in n.output if o in made]
        how = "name"
    else:
        blocks = SequenceMatcher(None, [n.op_type for n in nodes_a], [n.op_type for n in nodes_b], False)
        found = [
            (nodes_a[i + k].output[0], nodes_b[j + k].output[0], nodes_b[j + k])
            for i, j, size in blocks.get_matching_blocks()
            for k in range(size)
        ]
        how = "position"
    found = [(x, y, n) for x, y, n in found if x in kinds_a and y in kinds_b]
    if not any(n.op_type in _LAYERS for _, _, n in found):
        raise ExportError("the two files have no layers in common, neither by name nor by their order")
    quantizers = _quantizers(b)
    entry = a.graph.input[0].name, b.graph.input[0].name
    pairs = [Pair(*entry, "", "input", quantizers.get(entry[1]))]
    return [*pairs, *(Pair(x, y, n.name, n.op_type, quantizers.get(y)) for x, y, n in found)], how


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The model with some float tensors as its outputs."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:], changed.graph.value_info[:]
    changed.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    return changed


def cut(model: onnx.ModelProto, tensors: Sequence[str], shown: Iterable[str] = ()) -> onnx.ModelProto:
    """The model with some of its tensors given from outside; what it would make of each is an output, `MADE`.

    Args:
        model: any.
        tensors: where to cut.
        shown: more outputs.
    """
    changed = with_outputs(model, shown)
    graph, places = changed.graph, set(tensors)
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name in places:
                node.output[index] = f"{name}{MADE}"
    known = {i.name for i in graph.input}
    graph.input.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in tensors if n not in known)
    made = [f"{n}{MADE}" for n in tensors if n not in known]
    graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in made)
    return changed


def sources(model: onnx.ModelProto, places: Mapping[str, str]) -> dict[str, set[str]]:
    """For each place, where the file is cut, the ones that it is made of; ``places`` gives them names."""
    reach: dict[str, set[str]] = {i.name: {places[i.name]} for i in model.graph.input if i.name in places}
    found: dict[str, set[str]] = {}
    for node in model.graph.node:
        read = set().union(*(reach.get(name, set()) for name in node.input))
        for output in node.output:
            if output in places:
                found[output], reach[output] = read, {places[output]}
            else:
                reach[output] = read
    return found


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}


def _quantizers(model: onnx.ModelProto) -> dict[str, Quantizer]:
    """Of each activation, the pair with one scale behind it."""
    graph = model.graph
    stored = {i.name: i for i in graph.initializer}
    writers = {o: n for n in graph.node for o in n.output}
    found: dict[str, Quantizer] = {}
    for node in graph.node:
        before = writers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is None or before.op_type != "QuantizeLinear" or any(n not in stored for n in before.input[1:]):
            continue
        scale = numpy_helper.to_array(stored[before.input[1]])
        zero = numpy_helper.to_array(stored[before.input[2]]) if len(before.input) > 2 else np.uint8(0)
        if scale.size != 1:
            continue
        smallest, largest = Range(0.0, 0.0, str(zero.dtype)).integers if zero.dtype in (np.int8, np.uint8) else (0, 0)
        ends = [(k - int(zero.reshape(()))) * float(scale.reshape(())) for k in (smallest, largest)]
        tensor = before.input[0]
        while (step := writers.get(tensor)) is not None and step.op_type in ("Mul", "Sub") and step.input[1] in stored:
            found.setdefault(tensor, Quantizer(before.input[0], node.output[0], *ends))
            tensor = step.input[0]
        found.setdefault(tensor, Quantizer(before.input[0], node.output[0], *ends))
    return found
