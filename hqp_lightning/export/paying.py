"""Which layers INT8 wins nothing for, by what NVIDIA's compiler makes of them and by the noise that they cost."""

from __future__ import annotations

import math
import os

from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.placement import layers_read, placements

__all__ = ["unprofitable"]

# An INT8 convolution ends in float32 sums and a kernel that scales them: two kernels for each INT8 layer, where a
# float16 one has its activation in its epilogue. Below so many products for an output, writing them is what costs.
_PRODUCTS = 48
_BEHIND_FLOAT = 80  # where a depthwise convolution in float is read, which would have to write integers for it alone
_CHANNELS = 16  # the narrowest INT8 tile; a group of fewer is padded to it


def unprofitable(onnx_path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Name the convolutions and linear layers that had better stay in float, for `quantize` to ``exclude``.

    - those of fewer than 48 products for each output (depthwise and pointwise ones of few channels, the first one of a
      MobileNet), and grouped ones of fewer than 16 inputs a group: an INT8 depthwise convolution reads four copies of
      its input, saves no kernel, and is what ruins MobileNets' logits;
    - those of fewer than 80 products that read such a grouped convolution: projections of a MobileNet's first blocks;
    - those of fewer than 16 outputs, such as a head of ten classes.

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
    for name, axis in layers.items():
        shape = shapes[nodes[name].input[1]]
        groups = next((a.i for a in nodes[name].attribute if a.name == "group"), 1)
        outputs = shape[axis]
        products = math.prod(shape) // outputs
        inputs = shape[1] if groups > 1 else _CHANNELS
        read = layers_read(nodes[name].input[0], writers, layers)
        least = _BEHIND_FLOAT if grouped.intersection(read) else _PRODUCTS
        if products < least or min(outputs, inputs) < _CHANNELS:
            left.append(name)
            if groups > 1:
                grouped.add(name)
    return tuple(left) if len(left) < len(layers) else ()
