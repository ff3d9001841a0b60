"""The engine inspector's JSON as facts: which precision each layer got, and where INT8 was asked for in vain."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hqp_lightning.errors import ExportError

__all__ = ["Layer", "fell_back", "read_layers", "table", "untold"]

# How the releases write a type in "Format/Datatype" or "Weights": "Row major Int8 format", "Half", "Float",
# "Channel major FP16 format where channel % 8 == 0", "Row major linear FP32".
_TYPES = (("int8", "INT8"), ("fp8", "FP8"), ("bf16|bfloat16", "BF16"), ("half|fp16", "FP16"), ("float|fp32", "FP32"))


class Layer(NamedTuple):
    """A layer of a built engine: usually several nodes of the model, fused.

    Attributes:
        name: its nodes, joined by " + ".
        kind: the inspector's name of the implementation.
        precision: of its weights, or of its first input where it has none; ``"?"`` where the inspector is silent.
        output: of its first output.
    """

    name: str
    kind: str
    precision: str
    output: str
    nodes: tuple[str, ...]


def read_layers(inspection: str) -> list[Layer]:
    """Parse ``get_engine_information(JSON)``.

    Raises:
        ExportError: the engine was built without detailed layer information, or the report is not JSON.

    Examples:
        >>> conv = '{"Name": "c1 + r1", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 9}'
        >>> conv += ', "Inputs": [{"Format/Datatype": "Int8 format"}], "Outputs": [{"Format/Datatype": "Half"}]}'
        >>> read_layers(f'{{"Layers": [{conv}]}}')
        [Layer(name='c1 + r1', kind='CaskConvolution', precision='INT8', output='FP16', nodes=('c1', 'r1'))]
    """
    try:
        rows = json.loads(inspection, strict=False).get("Layers", [])  # "Metadata" is separated by control characters
    except (ValueError, AttributeError) as error:
        raise ExportError(f"TensorRT's report of the layers cannot be read: {error}") from error
    if any(isinstance(row, str) for row in rows):
        raise ExportError("the engine has only the names of its layers: build it with detailed profiling verbosity")
    return [_layer(row) for row in rows]


def fell_back(layers: Iterable[Layer], asked: Iterable[str]) -> list[Layer]:
    """The layers that compute in another type than INT8 though one of their nodes is in ``asked``."""
    wanted = set(asked)
    return [layer for layer in layers if wanted.intersection(layer.nodes) and layer.precision not in ("INT8", "?")]


def untold(layers: Iterable[Layer], asked: Iterable[str]) -> list[str]:
    """Those of ``asked`` of which the report names no precision: fused into a layer that does not list its nodes."""
    told = {node for layer in layers if layer.precision != "?" for node in layer.nodes}
    return [name for name in asked if name not in told]


def table(layers: Sequence[Layer]) -> str:
    """One line a layer, and the number of layers of each precision."""
    counts = ", ".join(f"{n} {precision}" for precision, n in Counter(x.precision for x in layers).most_common())
    rows = [(x.precision, x.output, x.kind, x.name) for x in layers]
    head = ("compute", "output", "kind", "layer")
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(3)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[3]]) for row in (head, *rows)]
    return "\n".join([*lines, f"{len(layers)} layers: {counts}"])


def _layer(row: dict[str, Any]) -> Layer:
    name = str(row.get("Name", "?"))
    weights = row.get("Weights")
    computed = _type(weights.get("Type", "")) if isinstance(weights, dict) else "?"
    taken, given = (_tensor(row.get(key)) for key in ("Inputs", "Outputs"))
    # "a + b" are fused one after the other, "a || b" and "a+b" side by side; 10 repeats the nodes in "Metadata".
    nodes = [*re.split(r" ?\+ ?| \|\| ", name), *re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(row.get("Metadata", "")))]
    return Layer(
        name, str(row.get("LayerType", "?")), taken if computed == "?" else computed, given, tuple(dict.fromkeys(nodes))
    )


def _tensor(tensors: Any) -> str:
    first = tensors[0] if isinstance(tensors, list) and tensors else None
    if not isinstance(first, dict):
        return "?"
    return _type(f"{first.get('Format/Datatype', '')} {first.get('Datatype', '')}")


def _type(text: str) -> str:
    return next((name for pattern, name in _TYPES if re.search(pattern, text, re.IGNORECASE)), "?")
