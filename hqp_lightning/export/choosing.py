"""Which of several ranges for the same tensors: those whose INT8 file is closest to the float one's logits."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from hqp_lightning.board.arrays import Arrays
from hqp_lightning.core import equalization
from hqp_lightning.core.calibration import Range, compute_range
from hqp_lightning.core.equalization import ChannelHistogram
from hqp_lightning.core.histogram import Histogram
from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.logits import Logits, answered, fed, noise
from hqp_lightning.export.placement import Placement
from hqp_lightning.export.quantize import insert_qdq_
from hqp_lightning.export.sessions import return_memory

__all__ = ["least_noise", "measured_noise", "rescaled"]

_EVEN = 0.5  # channels that differ by less than this gain less than a bit: not worth a multiplication
_CENTRED = 0.9
_FAR = 2.0


def rescaled(
    plain: Mapping[str, Range],
    channels: Mapping[str, ChannelHistogram],
    histograms: Mapping[str, Histogram],
    ends: Mapping[str, tuple[np.ndarray, np.ndarray]],
    power: float,
    centred: Collection[str] = (),
    *,
    activation_type: str,
    method: str,
    percentile: float,
) -> dict[str, Range]:
    """The ranges with factors where channels were counted, and shifts where their ends are known, if they win much."""
    ranges = dict(plain)
    given: dict[str, Any] = {"method": method, "percentile": percentile}
    for name, counted in channels.items():
        centre = name in centred
        even = equalization.equalized(counted, activation_type=activation_type, power=power, centre=centre, **given)
        if even.factors and (centre or min(even.factors) < _EVEN):
            ranges[name] = even
    for name, (low, high) in ends.items():
        moved = equalization.shifted(compute_range(histograms[name], activation_type="uint8", **given), low, high)
        if moved.high < _CENTRED * plain[name].high:
            ranges[name] = moved
    return ranges


def least_noise(
    onnx_path: str | os.PathLike[str],
    placed: Sequence[Placement],
    candidates: Sequence[Mapping[str, Range]],
    sample: Arrays,
    reference: Logits,
    threads: int | None,
) -> dict[str, Range]:
    """Quantize the whole model with each candidate; the one with the least noise of the logits, of equals the first."""
    unlike = [c for k, c in enumerate(candidates) if c not in candidates[:k]]
    if len(unlike) == 1:
        return dict(unlike[0])

    def measured(ranges: Mapping[str, Range]) -> float:
        return measured_noise(onnx_path, placed, ranges, sample, reference, threads)

    best, least = unlike[0], measured(unlike[0])
    for other in reversed(unlike[1:]):  # without factors first: what is far better than that needs no further look
        found = measured(other)
        if found < least:
            best, least = other, found
        elif _FAR * least < found:
            break
    return dict(best)


def measured_noise(
    onnx_path: str | os.PathLike[str],
    placed: Sequence[Placement],
    ranges: Mapping[str, Range],
    sample: Arrays,
    reference: Logits,
    threads: int | None,
) -> float:
    """Of the logits of the float model, quantized with these ranges; its weights are freed before anything runs."""
    model = load_model(onnx_path)
    feed = fed(model, sample)
    content = insert_qdq_(model, placed, ranges).SerializeToString()
    del model
    return_memory()
    return noise(answered(content, feed, threads), reference)
