"""Quantize one float model so that it stays within the budget, with as few layers in float as that takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hqp_lightning import export
from hqp_lightning.board.arrays import Arrays, cut, first
from hqp_lightning.core.mixed_precision import fewest
from hqp_lightning.export.engines import Engine, backends
from hqp_lightning.export.options import FileOptions
from hqp_lightning.records import OnnxArtifact, QuantizedLayer, Verdict
from hqp_lightning.shipping.placing import left_in_float

__all__ = ["Quantized", "quantize_within", "with_cost"]

_log = logging.getLogger(__name__)
_NOISE_SAMPLES = 32
_LOUD, _NAMED = 0.1, 4  # 10 dB; layers that the warning names


@dataclass(frozen=True)
class Quantized:
    """An INT8 model on its engine, what its score means, what became of every layer, and what INT8 wins nothing for."""

    artifact: OnnxArtifact
    engine: Engine
    verdict: Verdict
    layers: tuple[QuantizedLayer, ...]
    by_rule: tuple[str, ...] = ()
    ranges: Mapping[str, export.Range] = field(default_factory=dict)
    warning: str | None = None


def quantize_within(
    float_onnx: OnnxArtifact,
    calibration: Callable[[], Iterator[Arrays]],
    measure: Callable[[OnnxArtifact], tuple[Engine, Verdict]],
    out_path: Path,
    options: FileOptions,
    max_float_layers: int,
    advice: str | None = None,
) -> Quantized:
    """Quantize what pays; if that is over budget, leave layers in float, as few as bring it within the budget.

    Those go first that win most noise for the time that they cost on the engine at hand. On a GPU, where each try is an
    engine to build, and if their order brings nothing within, it is the noisiest.

    Args:
        float_onnx: the model.
        calibration: gives the calibration batches, the same at every call.
        measure: builds an engine of an artifact and judges its score.
        out_path: the file to write.
        options: calibration method, placement and threads.
        max_float_layers: how many layers may stay in float; 0: none.
        advice: for logits that are far from the float ones, in the caller's own options; None: in those of Int8Export.

    Returns:
        What is within the budget; or else, with its engine closed, what came of quantizing all of these layers.
    """
    where = {"quantize_hardswish": options.quantize_hardswish, "quantize_se": options.quantize_se}
    threads = options.threads
    ranges = export.collect_ranges(
        float_onnx.path,
        calibration(),
        method=options.method,
        activation_type=options.activation_type,
        threads=threads,
        exclude=() if options.placement == "all" else export.unprofitable(float_onnx.path),
        **where,
    )
    sample = first(calibration(), _NOISE_SAMPLES)
    noise = export.quantization_noise(float_onnx.path, ranges, sample, threads=threads, **where)
    rule = left_in_float(float_onnx, ranges, options, out_path.parent)
    noisiest = sorted(set(noise) - set(rule), key=lambda name: noise[name], reverse=True)

    looked = export.look(float_onnx.path, ranges, sample, exclude=rule, threads=threads, **where)
    warning = _warning(looked, noisiest, noise, advice or _hint(options, max_float_layers))
    if warning is not None:
        _log.warning("hqp: %s", warning)

    costs: dict[str, float] = {}

    def attempt(order: Sequence[str], in_float: int) -> Quantized:
        kept = {*rule, *order[:in_float]}
        artifact = export.quantize(float_onnx.path, ranges, out_path, exclude=sorted(kept), **where)
        layers = (QuantizedLayer(n, v, "float" if n in kept else "int8", costs.get(n)) for n, v in noise.items())
        return Quantized(artifact, *measure(artifact), tuple(layers), rule, ranges, warning)

    def within(order: Sequence[str]) -> int | None:
        def enough(in_float: int) -> bool:
            tried = attempt(order, in_float)
            tried.engine.close()
            return tried.verdict.kept

        return fewest(limit, enough)

    made = attempt(noisiest, 0)
    limit = min(max_float_layers, len(noisiest))
    if made.verdict.kept or limit == 0:
        return made
    made.engine.close()
    orders = [noisiest]
    if made.engine.threads:
        backend = next(b for b in backends() if b.name == made.engine.backend)
        one, threads = cut(sample, 0, 1), made.engine.threads
        order, costs = export.float_order(
            float_onnx.path, ranges, noise, limit, backend, one, exclude=rule, threads=threads, **where
        )
        orders = [order] if order[:limit] == noisiest[:limit] else [order, noisiest]
    for order in orders:
        if (in_float := within(order)) is not None:
            return attempt(order, in_float)
    return replace(made, layers=tuple(replace(q, float_cost_ms=costs.get(q.layer)) for q in made.layers))


def with_cost(layer: QuantizedLayer) -> str:
    """Its name, and what it costs in float, where that was measured."""
    return layer.layer + ("" if layer.float_cost_ms is None else f" ({layer.float_cost_ms:+.3f} ms)")


def _warning(noise: float, noisiest: Sequence[str], alone: Mapping[str, float], hint: str) -> str | None:
    """One line, if the logits of the INT8 file are far from the float ones: before anybody reads a score."""
    if noise <= _LOUD:
        return None
    layers = ", ".join(f"{name} ({_decibels(alone[name]):.1f} dB alone)" for name in noisiest[:_NAMED])
    return (
        f"INT8 logits have an SQNR of only {_decibels(noise):.1f} dB on calibration images, expect a drop. "
        f"The noisiest layers: {layers}. {hint} (docs/int8.md, When the score falls)"
    )


def _hint(options: FileOptions, max_float_layers: int) -> str:
    """What most likely helps, by what was chosen; first a default that was given up, as going back is free."""
    if options.method != "mse":
        return f'The ranges are of method="{options.method}": try "mse", the default.'
    if options.placement == "all":
        return 'placement="all" quantizes thin and depthwise layers, too: try "paying", the default.'
    if max_float_layers == 0:
        return "With max_float_layers=0 no layer may go back to float."
    return f"Over the budget up to max_float_layers={max_float_layers} of them go back to float."


def _decibels(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-30))
