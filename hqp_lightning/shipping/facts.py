"""What a report says of the pruning: widths of layers, worth of groups, units that are gone."""

from __future__ import annotations

from typing import cast

from hqp_lightning.records import GroupSensitivity, LayerChannels, unit_of
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import Structure

__all__ = ["channels", "sensitivity", "units_removed"]


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
