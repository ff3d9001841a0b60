"""Which layers of a network an INT8 file quantizes, and with which ranges of their inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from hqp_lightning.core.calibration import Range
from hqp_lightning.core.modes import evaluating
from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.placement import placements

__all__ = ["input_ranges"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_FOLDED = 1e-3  # relative error of weights that differ by one factor per output channel, in float32


def input_ranges(
    float_path: str | os.PathLike[str],
    int8_path: str | os.PathLike[str],
    network: nn.Module,
    example: Tensor | Sequence[Tensor],
    ranges: Mapping[str, Range] | None = None,
) -> dict[str, Range]:
    """Read back what each convolution and linear layer got in the INT8 file.

    A file names nodes after the trace, so layers are matched in the order in which a forward pass calls them, and
    compared: the float file's weights are the layer's, up to one factor per output channel (BatchNorm, folded).

    Args:
        float_path: the float model, from `export_onnx` of this very network.
        int8_path: what `quantize` made of it.
        network: the module; run once in evaluation mode.
        example: its input, ``(batch, ...)``, on the network's device, or its inputs.
        ranges: what `quantize` was given; needed where it has factors, shifts or means, which the file holds in other
            places.

    Returns:
        Layer name to the range of its input; layers that the file leaves in float are not in it.

    Raises:
        ExportError: the layers are not those of the files: some are no modules of their own, are called more than
            once, or change their weights before they use them.
    """
    layers = _in_call_order(network, example)
    nodes = [p for p in placements(float_path) if p.weight_axis is not None]
    if len(layers) != len(nodes):
        raise ExportError(
            f"the network calls {len(layers)} convolutions and linear layers, {float_path} has {len(nodes)}: each has "
            "to be a module of its own that is called once"
        )
    graph = load_model(float_path).graph
    weights = {i.name: i for i in graph.initializer}
    weight_of = {n.name: n.input[1] for n in graph.node if len(n.input) > 1}
    given = _given(load_model(int8_path).graph)
    found: dict[str, Range] = {}
    for (name, layer), place in zip(layers.items(), nodes, strict=True):
        stored = np.moveaxis(numpy_helper.to_array(weights[weight_of[place.node]]), place.weight_axis or 0, 0)
        if not _same(layer, stored):
            raise ExportError(f"layer {name!r} does not have the weights of {place.node!r} in {float_path}")
        if place.node in given:
            found[name] = given[place.node] if ranges is None else ranges[place.tensor]
    return found


def _in_call_order(network: nn.Module, example: Tensor | Sequence[Tensor]) -> dict[str, nn.Module]:
    called: list[str] = []
    layers = {n: m for n, m in network.named_modules() if isinstance(m, _LAYERS)}
    handles = [m.register_forward_pre_hook(lambda *_, n=n: called.append(n)) for n, m in layers.items()]
    try:
        with evaluating(network), torch.no_grad():
            network(*((example,) if isinstance(example, Tensor) else example))
    finally:
        for handle in handles:
            handle.remove()
    if len(set(called)) < len(called):
        twice = next(n for n in called if called.count(n) > 1)
        raise ExportError(f"layer {twice!r} is called more than once, with one range for each call in the file")
    return {n: layers[n] for n in called}


def _same(layer: nn.Module, stored: np.ndarray) -> bool:
    own = layer._parameters.get("weight")
    if own is None or tuple(own.shape) != stored.shape:
        return False
    ours, theirs = (w.reshape(len(w), -1).astype(np.float64) for w in (own.detach().cpu().numpy(), stored))
    factor = (ours * theirs).sum(1) / np.maximum((ours**2).sum(1), 1e-30)
    return bool(np.abs(theirs - factor[:, None] * ours).max() <= _FOLDED * np.abs(theirs).max())


def _given(graph: onnx.GraphProto) -> dict[str, Range]:
    """Node name to the range of its input, where input and weights are quantized."""
    stored = {i.name: i for i in graph.initializer}
    pairs = {n.output[0]: n.input[1:] for n in graph.node if n.op_type == "DequantizeLinear"}
    return {
        n.name: _range(*(numpy_helper.to_array(stored[name]) for name in pairs[n.input[0]]))
        for n in graph.node
        if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[0] in pairs and n.input[1] in pairs
    }


def _range(scale: np.ndarray, zero_point: np.ndarray) -> Range:
    smallest, largest = Range(0.0, 0.0, str(zero_point.dtype)).integers
    step, zero = float(scale), int(zero_point)
    return Range((smallest - zero) * step, (largest - zero) * step, str(zero_point.dtype))
