"""What a report says of the pruning: widths of layers, worth of groups, units that are gone, the latency foretold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

from torch import nn

from hqp_lightning.core.branches import as_tried
from hqp_lightning.export.latency import How, comparable, network_ms
from hqp_lightning.records import (
    GroupSensitivity,
    LatencyFigures,
    LayerChannels,
    OnnxArtifact,
    UnitSensitivity,
    unit_of,
)
from hqp_lightning.report.latency_table import write_table
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import Structure, layer_widths

__all__ = ["TABLE", "channels", "foretold", "sensitivity", "units", "units_removed"]

TABLE = "latency_table.json"


def sensitivity(search: PruningState | None) -> list[GroupSensitivity]:
    """The worth of the dense network's groups of channels."""
    if search is None:
        return []
    rows = []
    for name, values in (search.dense_saliency or {}).items():
        if unit_of(name) is not None:
            continue
        costs = values[values.isfinite()].double().sort().values / 2
        half = float(costs[: len(costs) // 2].sum())
        rows.append(GroupSensitivity(name, search.channels.get(name, len(values)), half, float(costs.sum())))
    return rows


def units(search: PruningState | None) -> list[UnitSensitivity]:
    """The worth of the dense network's units, in its order."""
    if search is None or search.dense_saliency is None:
        return []
    rises, values = search.dense_rises, search.dense_saliency
    ranked = as_tried(values, rises)
    half = {n: (0.5 * float(values[n].sum()), 0.5 * float(ranked[n].sum())) for n in values if unit_of(n) is not None}
    finite = {n: pair for n, pair in half.items() if all(map(math.isfinite, pair))}
    return [UnitSensitivity(n, value, rises.get(n), loss) for n, (value, loss) in finite.items()]


def units_removed(search: PruningState | None, shipped: Structure, prefix: str) -> tuple[str, ...]:
    """Keys of the units that a stand-in stands for in the shipped model, in its order."""
    keys = {u.partition(":")[2]: u for r in (search.records if search else ()) for u in r.units_removed}
    names = (n.removeprefix(f"{prefix}.") if prefix else n for n in shipped.replaced)
    return tuple(keys[n] for n in names if n in keys)


def channels(before: Structure, after: Structure, prefix: str) -> list[LayerChannels]:
    """The widths of all layers; 0 after, where a layer went with its unit."""
    rows = []
    for name, attributes in before.attributes.items():
        now = after.attributes.get(name, {})
        for key in ("out_channels", "out_features"):
            if key in attributes and f"{name}.weight" in before.shapes:  # not a container that notes its width
                layer = name.removeprefix(f"{prefix}.") if prefix else name
                rows.append(LayerChannels(layer, cast(int, attributes[key]), cast(int, now.get(key, 0))))
    return rows


def foretold(
    search: PruningState | None, network: nn.Module, int8: OnnxArtifact, dense: OnnxArtifact, dirpath: Path
) -> LatencyFigures | None:
    """Write the table, and measure the files as the table was, where that was on this machine.

    Args:
        search: None, or without a price: there was no table.
        network: what ships.
        int8: its file.
        dense: the dense float network's: a machine may be slower or faster now than when the table was made.
        dirpath: folder of the report.
    """
    if search is None or (price := search.price) is None:
        (dirpath / TABLE).unlink(missing_ok=True)  # of an earlier run
        return None
    table, measured, dense_now = price.table, None, None
    write_table(table, dirpath / TABLE)
    if comparable(table):
        how = How(threads=table.threads, batch_size=table.batch_size)
        dense_now, measured = network_ms([(dense.path, "fp32"), (int8.path, "int8")], how)
    return LatencyFigures(
        engine=table.engine,
        version=table.version,
        device=table.device,
        threads=table.threads,
        clock=table.clock,
        predicted_ms=price.ms(layer_widths(network, price.layers())),
        dense_float_ms=price.measured("fp32"),
        dense_int8_ms=price.measured("int8"),
        measured_ms=measured,
        measured_dense_float_ms=dense_now,
    )
