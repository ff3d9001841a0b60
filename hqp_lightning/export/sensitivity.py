"""How much noise each quantized layer puts into the logits, measured one layer at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from hqp_lightning.board.arrays import Arrays
from hqp_lightning.core.calibration import Range
from hqp_lightning.export.artifact import describe, feed, load_model
from hqp_lightning.export.choosing import measured_noise
from hqp_lightning.export.logits import logits
from hqp_lightning.export.placement import placements

__all__ = ["look", "quantization_noise"]


def quantization_noise(
    onnx_path: str | os.PathLike[str],
    ranges: Mapping[str, Range],
    batch: Arrays,
    *,
    threads: int | None = None,
    quantize_hardswish: bool = False,
    quantize_se: bool = False,
) -> dict[str, float]:
    """Quantize one layer at a time and compare the logits *q* with those of the float model, *y*.

    The noise is ``sum((q - y)**2) / sum((y - mean(y))**2)`` over the batch, the inverse of the signal-to-quantization-
    noise ratio (10^-4 is 40 dB); a shift of all logits of a sample changes no softmax, so *y*, *q* are taken per
    sample relative to their mean over the classes. Errors of different layers are nearly uncorrelated, so that the
    noises about add up, and leaving the noisiest layers in float removes the most.

    Args:
        onnx_path: a float model.
        ranges: tensor name to range, from `collect_ranges` on the same file.
        batch: ``(batch, *shape)``, preprocessed, or one for each input; some 32 samples rank the layers well.
        threads: onnxruntime's threads; None: its own default.
        quantize_hardswish: see `hqp_lightning.export.placements`; as for `collect_ranges`.
        quantize_se: see there.

    Returns:
        Node name (as ``exclude`` of `quantize` takes it) to its noise, in graph order.

    Raises:
        ExportError: a range is missing, or the batch has another shape than the model's input.
    """
    feed(describe(onnx_path).inputs, batch)  # raises where it does not fit
    reference = logits(load_model(onnx_path), batch, threads)
    placed = placements(onnx_path, quantize_hardswish=quantize_hardswish, quantize_se=quantize_se)
    return {
        node: measured_noise(onnx_path, [p for p in placed if p.node == node], ranges, batch, reference, threads)
        for node in dict.fromkeys(p.node for p in placed)
    }


def look(
    onnx_path: str | os.PathLike[str],
    ranges: Mapping[str, Range],
    batch: Arrays,
    *,
    exclude: Sequence[str] = (),
    threads: int | None = None,
    quantize_hardswish: bool = False,
    quantize_se: bool = False,
) -> float:
    """The noise of the logits, as of `quantization_noise`, with all layers quantized: one look before any score.

    Args:
        onnx_path: a float model.
        ranges: tensor name to range, from `collect_ranges` on the same file.
        batch: ``(batch, *shape)``, preprocessed, or one for each input.
        exclude: names of nodes to keep in float.
        threads: onnxruntime's threads; None: its own default.
        quantize_hardswish: see `hqp_lightning.export.placements`; as for `collect_ranges`.
        quantize_se: see there.
    """
    reference = logits(load_model(onnx_path), batch, threads)
    placed = placements(onnx_path, exclude=exclude, quantize_hardswish=quantize_hardswish, quantize_se=quantize_se)
    return measured_noise(onnx_path, placed, ranges, batch, reference, threads)
