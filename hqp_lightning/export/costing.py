"""What layers cost in float, measured on whole files: the compiler's kernels, or the processor's time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hqp_lightning.board.arrays import Arrays
from hqp_lightning.core.calibration import Range
from hqp_lightning.core.mixed_precision import by_worth
from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.edits import Graph
from hqp_lightning.export.engines.base import Backend, Engine
from hqp_lightning.export.placement import placements
from hqp_lightning.export.quantize import quantize

__all__ = ["float_costs_ms", "float_order", "in_a_row"]

_TIMED = 2  # candidates for each layer that may stay in float
_COIN = 0.05  # of a call: readings of the same file differ by less, and for less no layer is worth passing over
_TURNS, _WARM = 25, 3


def float_order(
    onnx_path: str | os.PathLike[str],
    ranges: Mapping[str, Range],
    noise: Mapping[str, float],
    limit: int,
    backend: Backend,
    batch: Arrays,
    *,
    exclude: Sequence[str] = (),
    threads: int = 1,
    quantize_hardswish: bool = False,
    quantize_se: bool = False,
) -> tuple[list[str], dict[str, float]]:
    """The order in which layers should go to float: most noise won for a millisecond first.

    The noisiest ``2 * limit`` layers are timed, each alone and each pair of them that stands in a row, which saves a
    quantizer; the others follow by their noise. Times count in twentieths of a call: what costs about alike goes by
    its noise, so that the order does not depend on what else the machine did meanwhile.

    Args:
        onnx_path: a float model.
        ranges: tensor name to range, from `collect_ranges` on the same file.
        noise: from `quantization_noise`.
        limit: how many layers may stay in float.
        backend: the runtime on which a call is timed.
        batch: what that call gets, such as one sample.
        exclude: names of nodes that are in float anyway.
        threads: of the runtime.
        quantize_hardswish: see `hqp_lightning.export.placements`; as for `collect_ranges`.
        quantize_se: see there.

    Returns:
        Names of nodes without ``exclude``, best first, and what each timed one adds to a call, in ms; below 0: it is
        quicker in float.
    """
    where = {"quantize_hardswish": quantize_hardswish, "quantize_se": quantize_se}
    loudest = sorted(set(noise) - set(exclude), key=lambda name: (-noise[name], name))
    timed = loudest[: _TIMED * limit]
    units = [(name,) for name in timed] + in_a_row(onnx_path, timed)
    if not units:
        return loudest, {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        engines: dict[tuple[str, ...], Engine] = {}
        try:
            for k, unit in enumerate([(), *units]):
                file = Path(scratch) / f"{k}.onnx"
                quantize(onnx_path, ranges, file, exclude=sorted({*exclude, *unit}), **where)
                engines[unit] = backend.build(file, "int8", scratch, threads=threads)
            costs, call = float_costs_ms(engines, batch)
        finally:
            for engine in engines.values():
                engine.close()
    order = by_worth({name: noise[name] for name in timed}, costs, max(_COIN * call, 1e-6))
    return [*order, *loudest[len(timed) :]], {name: costs[name,] for name in timed}


def float_costs_ms(
    engines: Mapping[tuple[str, ...], Engine], batch: Arrays
) -> tuple[dict[Sequence[str], float], float]:
    """Processor time that each unit adds to a call, and that of the call of ``engines[()]``, ms.

    Medians over turns in which all run, each in another order, and each turn is scaled to the median of its calls:
    other programs, which share the caches, and the clock make whole turns slower.
    """
    order, rng = list(engines), np.random.default_rng(0)
    spent = np.empty((_WARM + _TURNS, len(order)))
    for turn in spent:
        for at in rng.permutation(len(order)):
            start = time.process_time()
            engines[order[at]].run(batch)
            turn[at] = 1e3 * (time.process_time() - start)
    speed = np.maximum(np.median(spent, axis=1, keepdims=True), 1e-9)[_WARM:]
    typical = np.median(spent[_WARM:] / speed, axis=0) * np.median(speed)
    median = dict(zip(order, typical.tolist(), strict=True))
    return {unit: ms - median[()] for unit, ms in median.items() if unit}, median[()]


def in_a_row(onnx_path: str | os.PathLike[str], layers: Iterable[str]) -> list[tuple[str, ...]]:
    """Pairs of these nodes of which one reads what the other makes, with no quantized node between them."""
    graph = Graph(load_model(onnx_path))
    stops, wanted = {p.node for p in placements(onnx_path)}, set(layers)
    found: list[tuple[str, ...]] = []
    for name in (n for n in graph.nodes if n in wanted):
        open_, seen = list(graph.nodes[name].output), set()
        while open_:
            for reader in graph.readers.get(open_.pop(), ()):
                if reader.name in seen:
                    continue
                seen.add(reader.name)
                if reader.name in wanted:
                    found.append((name, reader.name))
                if reader.name not in stops:
                    open_ += reader.output
    return found
