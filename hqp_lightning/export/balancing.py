"""Factors in front of any convolution or linear layer, for files that are far from the float one without them.

A loud channel whose weights are small and a quiet one whose weights are large cost as much as planted noise: the input
has one scale, the weights have one for each *output* channel. Both are even with the factors √(r_c / w_c), r_c the
range of channel *c* and w_c its largest weight, each output's row by its own largest (SmoothQuant, Xiao et al., arXiv
2211.10438, with the exponent ½; cross-layer equalization where they fold into the layer before).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from hqp_lightning.board.arrays import Arrays, cut
from hqp_lightning.core.calibration import Range
from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.choosing import least_noise, measured_noise
from hqp_lightning.export.edits import Graph
from hqp_lightning.export.equalize import by_tensor, input_channels
from hqp_lightning.export.logits import Logits
from hqp_lightning.export.placement import Placement

__all__ = ["balanceable", "balanced", "rescued"]

_FAR = 0.01  # 20 dB: a file with less noise is as good without
_LOOK = 8  # samples that tell which; the factors are judged on all
_WORTH = 0.5  # 3 dB: for less, no multiplications
_UNEVEN = 0.2  # a tensor whose factors are all above it needs none
_FLOOR = 1e-4

Ends = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Tensor to the smallest and the largest value of each channel."""


def balanceable(model: onnx.ModelProto, placed: Iterable[Placement]) -> list[str]:
    """Tensors that the graph makes and whose quantized readers are ungrouped layers, additions and poolings."""
    graph, found = Graph(model), []
    for tensor, places in by_tensor(placed).items():
        weighted = [p for p in places if p.weight_axis is not None]
        channels = {input_channels(graph, graph.nodes[p.node], p.weight_axis) for p in weighted}
        if tensor in graph.producers and 0 not in channels and len(channels) <= 1:
            found.append(tensor)
    return found


def balanced(
    model: onnx.ModelProto, placed: Iterable[Placement], plain: Mapping[str, Range], ends: Ends
) -> dict[str, Range]:
    """The ranges with factors of the uneven ones among the tensors whose ends are known.

    Additions and poolings, which have no weights to undo factors with, stay in float there (`rescale_`).
    """
    graph, found = Graph(model), {}
    places = by_tensor(placed)
    for tensor, (low, high) in ends.items():
        top = np.maximum(-low, high)
        given, largest = plain[tensor], float(top.max())
        readers = [p for p in places.get(tensor, ()) if p.weight_axis is not None]
        if not largest:
            continue
        weights = np.max([_columns(graph, p) for p in readers], axis=0) if readers else np.ones_like(top)
        live = (top > 0) & (weights > 0)
        factors = np.sqrt(np.where(live, top, 1.0) / np.where(live, weights, 1.0))
        factors = np.where(live, factors / factors[live].max(), 1.0) if live.any() else np.ones_like(factors)
        factors = np.maximum(factors, _FLOOR)
        if factors.min() >= _UNEVEN:
            continue
        clip = min(given.high / largest, 1.0) if given.high else 1.0
        highest, lowest = clip * float((high / factors).max()), clip * float((low / factors).min())
        each = tuple(factors.tolist())
        if given.activation_type == "uint8":
            found[tensor] = Range(min(lowest, 0.0), max(highest, 0.0), "uint8", factors=each, means=given.means)
        else:
            end = max(-lowest, highest)
            found[tensor] = Range(-end, end, factors=each, means=given.means)
    return found


def rescued(
    onnx_path: str | os.PathLike[str],
    placed: Sequence[Placement],
    ranges: Mapping[str, Range],
    candidates: Sequence[Mapping[str, Range]],
    ends: Ends,
    sample: Arrays,
    reference: Logits,
    threads: int | None,
) -> dict[str, Range]:
    """``ranges``, if their file has 20 dB; else with the factors of `balanced`, if these halve the noise.

    ``candidates`` are what ``ranges`` were chosen from, the last of them plain. Each is tried anew with the factors:
    where the file was drowned by what they take away, the choice was by chance.
    """
    uneven = balanced(load_model(onnx_path), placed, candidates[-1], ends)
    if not uneven:
        return dict(ranges)
    few = cut(sample, 0, _LOOK), tuple(x[:_LOOK] for x in reference)
    if measured_noise(onnx_path, placed, ranges, *few, threads) <= _FAR:
        return dict(ranges)
    before = measured_noise(onnx_path, placed, ranges, sample, reference, threads)
    tried = least_noise(onnx_path, placed, [{**c, **uneven} for c in candidates], sample, reference, threads)
    after = measured_noise(onnx_path, placed, tried, sample, reference, threads)
    return tried if after < _WORTH * before else dict(ranges)


def _columns(graph: Graph, place: Placement) -> np.ndarray:
    """The largest weight of every input channel, each output's row by its own largest."""
    weight = numpy_helper.to_array(graph.stored[graph.nodes[place.node].input[1]])
    rows = np.abs(np.moveaxis(weight, place.weight_axis or 0, 0))
    rows = rows.reshape(*rows.shape[:2], -1).max(2).astype(np.float64)
    top = rows.max(1, keepdims=True)
    columns: np.ndarray = (rows / np.where(top > 0, top, 1.0)).max(0)
    return columns
