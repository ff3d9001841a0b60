"""Which layers OpenVINO is quicker with in float: what its counters promise, and what the clock then says."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

from hqp_lightning.core.mixed_precision import regions
from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.counters import openvino_counters
from hqp_lightning.export.latency import How, any_input, network_ms
from hqp_lightning.export.parts import Naming

__all__ = ["is_quicker", "promising", "time_ratios"]

_BUILDS, _SLOWER, _TURNS = 9, 1, 12
_SHARE = 0.01  # of a call: what the clock can tell


def promising(
    float_path: str | os.PathLike[str], int8_path: str | os.PathLike[str], layers: Sequence[str], how: How
) -> list[tuple[str, ...]]:
    """Regions of layers whose parts take less time in the float file than in the INT8 one, most promising first.

    The counters slow an engine down and know nothing of what a quantizer between two layers would cost: a reason to
    measure a region, not to take it. Those that are left out cost more in float by themselves.

    Args:
        float_path: a model.
        int8_path: its Q/DQ file.
        layers: names of nodes that are in INT8 there, in graph order.
        how: they run.
    """
    graph = load_model(float_path).graph
    naming = Naming({name: name for name in layers}, graph)
    paths = [str(int8_path), str(float_path)]
    executed = openvino_counters(paths, [any_input(p, how) for p in paths], how.threads)
    int8, plain = (naming.totals(of) for of in executed)
    part = naming.nodes
    reads = {n.name: part.get(n.input[0], n.name) for n in graph.node if n.name in layers}

    def saved(region: Sequence[str]) -> float:
        before = {reads[name] for name in region} - set(layers)  # where a quantizer goes that only the region reads
        return sum(int8.get(n, 0.0) - plain.get(n, 0.0) for n in {*region, *before})

    known = {region: saved(region) for region in regions(layers)}
    return sorted((r for r, ms in known.items() if ms > 0), key=lambda r: -known[r])


def time_ratios(now: str, tried: str, how: How) -> list[float]:
    """Time of a call of one Q/DQ file over that of another, build by build of both, as many as say enough.

    Two engines of one file differ by up to a seventh, as their memory lies: so both are built anew each time, in
    changing order, and timed in turn.
    """
    found: list[float] = []
    while len(found) < _BUILDS and _slower(found) <= _SLOWER:
        pair = [(now, "int8"), (tried, "int8")]
        if len(found) % 2:
            ahead, behind = network_ms(pair[::-1], how, _TURNS)
        else:
            behind, ahead = network_ms(pair, how, _TURNS)
        found.append(ahead / behind)
    return found


def is_quicker(ratios: Sequence[float]) -> bool:
    """Whether it can't be chance: of nine builds at least eight are quicker, which chance gives once in fifty.

    >>> is_quicker([0.97] * 8 + [1.02]), is_quicker([0.97] * 7 + [1.02] * 2), is_quicker([0.999] * 9)
    (True, False, False)
    """
    enough = len(ratios) >= _BUILDS and _slower(ratios) <= _SLOWER
    return enough and statistics.median(ratios) < 1 - _SHARE


def _slower(ratios: Sequence[float]) -> int:
    return sum(r >= 1 for r in ratios)
