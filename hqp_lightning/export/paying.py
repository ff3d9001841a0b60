"""Which layers INT8 wins nothing for, by what NVIDIA's compiler makes of them and by the noise that they cost."""

from __future__ import annotations

import math
import os
from collections.abc import Collection

from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.placement import layers_read, placements
from hqp_lightning.export.squeeze_excite import gate_layers

__all__ = ["unprofitable", "with_idle_additions"]

# An INT8 convolution ends in float32 sums and a kernel that scales them: two kernels for each INT8 layer, where a
# float16 one has its activation in its epilogue. Below so many products for an output, writing them is what costs.
_PRODUCTS = 48
# Behind a depthwise convolution in float, which would have to write integers for this reader alone: as many products,
# and as many outputs, whose sums in float32 are written and read once more.
_BEHIND_FLOAT, _OUTPUTS_BEHIND_FLOAT = 80, 48
_CHANNELS = 16  # the narrowest INT8 tile; a group of fewer is padded to it


def unprofitable(onnx_path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Name the nodes that had better stay in float, for `quantize` to ``exclude``.

    - those of fewer than 48 products for each output (depthwise and pointwise ones of few channels, the first one of a
      MobileNet), and grouped ones of fewer than 16 inputs a group: an INT8 depthwise convolution reads four copies of
      its input, saves no kernel, and is what ruins MobileNets' logits;
    - those of fewer than 80 products, or of fewer than 48 outputs, that read such a grouped convolution: projections of
      a MobileNet's first blocks;
    - those of fewer than 16 outputs, such as a head of ten classes;
    - residual additions of a tensor that no layer in INT8 writes or reads.

    Squeeze-excite layers are another matter: see `hqp_lightning.export.squeeze_excite`.

    If that would leave none, none is named: a network of thin layers alone is quantized as asked.

    Args:
        onnx_path: a float model.

    Returns:
        Names of nodes, in graph order.

    Raises:
        ExportError: as of `placements`.
    """
    graph = load_model(onnx_path).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    nodes = {n.name: n for n in graph.node}
    layers = {p.node: p.weight_axis for p in placements(onnx_path) if p.weight_axis is not None}
    writers = {output: n for n in graph.node for output in n.output}
    left: list[str] = []
    grouped: set[str] = set()
    gates = gate_layers(graph)
    for name, axis in layers.items():
        shape = shapes[nodes[name].input[1]]
        groups = next((a.i for a in nodes[name].attribute if a.name == "group"), 1)
        outputs = shape[axis]
        products = math.prod(shape) // outputs
        inputs = shape[1] if groups > 1 else _CHANNELS
        read = layers_read(nodes[name].input[0], writers, layers)
        if grouped.intersection(read) and name not in gates:
            thin = products < _BEHIND_FLOAT or outputs < _OUTPUTS_BEHIND_FLOAT
        else:
            thin = products < _PRODUCTS
        if thin or min(outputs, inputs) < _CHANNELS:
            left.append(name)
            if groups > 1:
                grouped.add(name)
    return with_idle_additions(onnx_path, left) if len(left) < len(layers) else ()


def with_idle_additions(onnx_path: str | os.PathLike[str], left: Collection[str]) -> tuple[str, ...]:
    """``left``, and the residual additions of tensors that no layer in INT8 writes or reads then.

    There a quantizer rounds what comes and goes as float: it costs the convolution before its epilogue, and is noise.

    Args:
        onnx_path: a float model.
        left: names of nodes that stay in float.

    Raises:
        ExportError: as of `placements`.
    """
    graph = load_model(onnx_path).graph
    writers = {output: n for n in graph.node for output in n.output}
    placed = placements(onnx_path)
    asked = {p.node: p.tensor for p in placed if p.weight_axis is not None and p.node not in left}
    layers = {p.node for p in placed if p.weight_axis is not None}
    additions = {n.name for n in graph.node if n.op_type == "Add"}
    idle = [
        p.node
        for p in placed
        if p.node in additions
        and p.tensor not in asked.values()
        and asked.keys().isdisjoint(layers_read(p.tensor, writers, layers))
    ]
    return tuple(dict.fromkeys([*left, *idle]))
