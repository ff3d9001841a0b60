"""A copy of a network with other channels: some gone, or in another order. Tensors that stay are shared."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from hqp_lightning.errors import SurgeryError
from hqp_lightning.surgery.copying import deep_copy
from hqp_lightning.surgery.graph import Coupled
from hqp_lightning.surgery.slicing import Slice, indices, structure_of, taken_by, width

__all__ = ["Removed", "Sides", "exchanged_sides", "kept_sides", "pruned_twin"]

Removed = Mapping[str, Sequence[int]]
"""Group name to the channels that go."""
Sides = dict[tuple[str, str, int], list[int]]
"""(name, side, dimension) of a layer to its own channels that are kept, in their new order."""


def pruned_twin(network: nn.Module, chosen: Sides) -> nn.Module:
    """A copy whose layers keep these channels; tensors that keep all are shared with ``network``."""
    kept = taken_by(network, chosen)
    memo: dict[int, Any] = {}
    for name, t in [*network.named_parameters(), *network.named_buffers()]:
        new = kept.get(name, t)
        memo[id(t)] = nn.Parameter(new) if name in kept and isinstance(t, nn.Parameter) else new
    twin = deep_copy(network, memo)
    for name, values in structure_of(network, kept, chosen).attributes.items():
        for key, value in values.items():
            setattr(twin.get_submodule(name), key, value)
    return twin


def kept_sides(network: nn.Module, coupled: Mapping[str, Coupled], removed: Removed) -> Sides:
    """What each side of each layer keeps when these channels of these groups go."""
    gone: dict[tuple[str, str, int], set[int]] = {}
    for group, channels in removed.items():
        for name, side, dim, index in indices(coupled[group].slices, set(channels)):
            gone.setdefault((name, side, dim), set()).update(index)
    return {s: [i for i in range(width(network, *s)) if i not in lost] for s, lost in gone.items() if lost}


def exchanged_sides(network: nn.Module, coupled: Mapping[str, Coupled], removed: Removed, cut: bool = False) -> Sides:
    """What each side of each layer holds in each place when channels of a group change places with each other.

    Args:
        network: as it stands.
        coupled: the groups by name.
        removed: group name to the channels that change places with its last ones.
        cut: these go instead, and those that stay change places with each other.

    Raises:
        SurgeryError: a layer sees some channels of a group more often than others.
    """
    sides: Sides = {}
    for name, channels in removed.items():
        for s, order in _exchanged(network, coupled[name], channels, cut):
            before = sides.get(s, list(range(len(order))))  # several groups may meet in one layer
            sides[s] = [now if now != i else before[i] for i, now in enumerate(order)]
    if cut:
        for s, kept in kept_sides(network, coupled, removed).items():
            sides[s] = [sides[s][i] for i in kept]
    return sides


def _exchanged(
    network: nn.Module, coupled: Coupled, removed: Sequence[int], cut: bool
) -> Iterator[tuple[tuple[str, str, int], list[int]]]:
    gates, blocks = coupled.group.gates, coupled.group.blocks
    going = sorted({c % gates for c in removed})
    staying = [g for g in range(gates) if g not in set(going)]
    order = [*staying, *going]
    if cut:
        drawn = random.Random(coupled.group.name).sample(staying, len(staying))
        order = [dict(zip(staying, drawn, strict=True)).get(g, g) for g in range(gates)]
    elif order == list(range(gates)):  # they are the last ones already
        order.reverse()
    new = {g + b * gates: order[g] + b * gates for g in range(gates) for b in range(blocks)}
    for s in coupled.slices:
        yield (s.name, s.side, s.dim), _reordered(network, s, new)


def _reordered(network: nn.Module, s: Slice, new: Mapping[int, int]) -> list[int]:
    places: dict[int, list[int]] = {}
    for i, c in sorted(zip(s.inputs, s.channels, strict=True)):
        places.setdefault(c, []).append(i)
    order = list(range(width(network, s.name, s.side, s.dim)))
    for channel, at in places.items():
        source = places.get(new[channel], [])
        if len(source) != len(at):
            raise SurgeryError(f"{s.name!r} sees some of its channels more often than others")
        for i, j in zip(at, source, strict=True):
            order[i] = j
    return order
