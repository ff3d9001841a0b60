"""What an engine's own counters say of the nodes of a file: how long each took, fused ones together."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hqp_lightning.board.arrays import Arrays, each

__all__ = ["Executed", "openvino_counters"]

Executed = tuple[tuple[str, ...], float]
"""Names of nodes or tensors of a file that an engine ran as one, and milliseconds of it."""

_TURNS, _WARM, _CALLS = 5, 2, 8
_ADDED = re.compile(r"^[A-Z][A-Za-z]*_[0-9]+$")  # OpenVINO's own names, such as of what requantizes
_HALF = 0.5  # microseconds, which is what the counters leave out on average: they give whole ones


def openvino_counters(
    paths: Sequence[str | os.PathLike[str]], batches: Sequence[Arrays], threads: int = 1
) -> list[list[Executed]]:
    """Run files on OpenVINO with its counters on, in turn.

    The engine gives a mean over all calls, in which one interruption shows, and the first one, that packs weights: the
    latter is taken off, and the median of a few engines taken, each scaled to the others: machines have slow moments.
    What the engine put in by itself (layouts, scales) goes with what it stands behind, or before.

    Args:
        paths: float or Q/DQ models.
        batches: their inputs.
        threads: of the engines.

    Returns:
        Of each file.
    """
    turns: list[list[dict[str, float]]] = [[] for _ in paths]
    origins: list[dict[str, tuple[str, ...]]] = [{} for _ in paths]
    for _ in range(_TURNS):
        for k, (path, batch) in enumerate(zip(paths, batches, strict=True)):
            found, origins[k] = _turn(path, batch, threads)
            turns[k].append(found)
    return [
        [(names, ms[n]) for n, names in named.items()] for named, ms in zip(origins, map(_settled, turns), strict=True)
    ]


def _settled(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each name over the turns, these scaled to one speed."""
    first = {n: statistics.median_low(t[n] for t in turns if n in t) for n in turns[-1]}
    scales = [statistics.median(t[n] / first[n] for n in t if first.get(n)) for t in turns]
    return {n: statistics.median_low(t[n] / s for t, s in zip(turns, scales, strict=True) if n in t) for n in first}


def _turn(
    path: str | os.PathLike[str], batch: Arrays, threads: int
) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
    import openvino

    core: Any = openvino.Core()
    model = core.read_model(path)
    given = each(batch)
    model.reshape({entry: list(x.shape) for entry, x in zip(model.inputs, given, strict=True)})
    feed = {
        k: np.ascontiguousarray(x, dtype=entry.get_element_type().to_dtype())
        for k, (entry, x) in enumerate(zip(model.inputs, given, strict=True))
    }
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": True,
    }
    request = (compiled := core.compile_model(model, "CPU", options)).create_infer_request()
    means = []
    for calls in (_WARM, _CALLS):
        for _ in range(calls):
            request.infer(feed, share_inputs=True)
        ops = compiled.get_runtime_model().get_ordered_ops()
        means.append(dict(_means(ops)))
    found = {n: _between(means[0].get(n, ms), ms) for n, ms in means[1].items()}
    return found, _origins([op for op in ops if op.get_friendly_name() in found])


def _between(warm: float, now: float) -> float:
    """The mean of the calls behind the first ones, from two means of all."""
    return max(0.0, ((_WARM + _CALLS) * now - _WARM * warm) / _CALLS)


def _means(ops: list[Any]) -> Iterator[tuple[str, float]]:
    """Milliseconds of what was executed, by name."""
    for op in ops:
        info = op.get_rt_info()
        time = _said(info, "execTimeMcs")
        if time.isdigit() and _said(info, "layerType") not in ("Input", "Output", "Const"):
            yield op.get_friendly_name(), 1e-3 * (int(time) + _HALF)


def _origins(ops: list[Any]) -> dict[str, tuple[str, ...]]:
    """What each stands for of the file."""
    found: dict[str, tuple[str, ...]] = {}
    for op in ops:
        name = op.get_friendly_name()
        said = _said(op.get_rt_info(), "originalLayersNames").split(",")
        before = (found.get(i.get_node().get_friendly_name(), ()) for i in op.input_values())
        found[name] = tuple(n for n in said if n and not _ADDED.match(n)) or next(filter(None, before), ())
    for op in reversed(ops):
        behind = (t.get_node().get_friendly_name() for o in op.outputs() for t in o.get_target_inputs())
        name = op.get_friendly_name()
        found[name] = found[name] or next(filter(None, (found.get(n, ()) for n in behind)), ())
    return found


def _said(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""
