"""Saliencies + costs + caps -> the next pruning step."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import ChannelGroup, PruningStep, Unit

__all__ = ["COSTS", "LATENCY", "Bundle", "Caps", "bundles_of", "joined", "propose"]

LATENCY = "latency"
COSTS = ("macs", LATENCY, "none")
"""What a channel's saliency is divided by: the MACs that go with it, the milliseconds, or nothing."""


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits of a selection.

    Attributes:
        round_to: kept channels of a group are a multiple of this (hardware tiles).
        max_channel_ratio: at most this fraction of a group's *original* channels may ever be removed.
        original: group name to its channel count in the dense model; the present count where missing.
    """

    round_to: int = 8
    max_channel_ratio: float = 0.9
    original: Mapping[str, int] | None = None


def propose(
    groups: Sequence[ChannelGroup],
    saliency: Mapping[str, Tensor],
    target_macs: float,
    caps: Caps | None = None,
    cost: str = "macs",
    units: Sequence[Unit] = (),
) -> PruningStep:
    """Cheapest channels and units first, channels in whole hardware tiles, until the step saves ``target_macs``.

    Each group offers its least salient gates in bundles that leave a multiple of ``round_to`` channels; bundles of
    all groups, and the units, compete by predicted loss increase, divided by the MACs that they save
    (``cost="macs"``). What lies inside of a unit goes with it.

    Args:
        groups: coupled groups of the model as it stands.
        saliency: per group, the Fisher value of each gate, shape ``(gates,)``; per unit, by its key, ``(1,)``.
        target_macs: MACs to save, for one sample.
        caps: rounding and limits.
        cost: ``"macs"`` ranks by loss increase per MAC, ``"none"`` by loss increase per channel or unit.
        units: modules that may go as a whole.

    Returns:
        The step; empty (no ``parts``) if no group may lose a bundle, and no unit may go.

    Raises:
        ConfigurationError: unknown cost.
    """
    known = tuple(c for c in COSTS if c != LATENCY)
    if cost not in known:
        raise ConfigurationError(f"cost={cost!r} is not known here; choose one of {known}.")
    caps = caps or Caps()
    queues = {g.name: bundles_of(g, saliency[g.name], caps, cost) for g in groups if g.name in saliency}
    wholes = {u.key: u for u in units if u.key in saliency}
    for key, unit in wholes.items():
        loss = 0.5 * float(saliency[key].sum())
        if math.isfinite(loss):
            queues[key] = [Bundle((), loss, unit.macs, loss / max(unit.macs if cost == "macs" else 1.0, 1e-12))]
    heap = [(bundles[0].price, name, 0) for name, bundles in queues.items() if bundles]
    heapq.heapify(heap)
    taken: dict[str, list[Bundle]] = {}
    inside: set[str] = set()  # of a unit that goes
    while heap and sum(b.macs for bundles in taken.values() for b in bundles) < target_macs:
        _, name, i = heapq.heappop(heap)
        if name in inside:
            continue
        if name in wholes:
            inside |= {n for n in queues if wholes[name].holds(wholes[n].name if n in wholes else n)}
            taken = {n: bundles for n, bundles in taken.items() if n not in inside}
        taken.setdefault(name, []).append(queues[name][i])
        if i + 1 < len(queues[name]):
            heapq.heappush(heap, (queues[name][i + 1].price, name, i + 1))
    removed = {n: tuple(sorted(c for b in bundles for c in b.channels)) for n, bundles in taken.items()}
    bundles = [b for name in taken for b in taken[name]]
    return PruningStep(
        {n: channels for n, channels in removed.items() if n not in wholes},
        sum(b.loss for b in bundles),
        sum(b.macs for b in bundles),
        tuple(sorted(n for n in removed if n in wholes)),
    )


def joined(done: Mapping[str, Sequence[int]], then: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Two removals, one after the other, as one: in the numbering from before the first.

    Args:
        done: group name to the channels that went.
        then: the same, in the numbering of what was left.

    Examples:
        >>> joined({"conv": (0, 2)}, {"conv": (0, 1), "fc": (5,)})
        {'conv': (0, 1, 2, 3), 'fc': (5,)}
    """
    whole = {name: tuple(channels) for name, channels in done.items()}
    for name, channels in then.items():
        gone = set(done.get(name, ()))
        left = [c for c in range(max(channels, default=-1) + len(gone) + 1) if c not in gone]
        whole[name] = tuple(sorted(gone | {left[c] for c in channels}))
    return whole


@dataclass(frozen=True, slots=True)
class Bundle:
    """Channels of a group that go together: what they cost in loss (nats) and MACs, and the price that ranks them."""

    channels: tuple[int, ...]
    loss: float
    macs: float
    price: float


def bundles_of(group: ChannelGroup, values: Tensor, caps: Caps, cost: str = "macs") -> list[Bundle]:
    """The group's gates from least to most salient, cut where the kept channels are a multiple of ``round_to``."""
    tile = caps.round_to // math.gcd(caps.round_to, group.blocks)  # in gates
    original = (caps.original or {}).get(group.name, group.channels)
    floor = max(original * (1 - caps.max_channel_ratio) / group.blocks, 1)
    floor = math.ceil(floor / tile - 1e-9) * tile
    order = torch.argsort(values, stable=True).tolist()
    # A layer may read or write a part of the group; the best gate of each part is the last to be offered, and stays.
    spared = {next(g for g in reversed(order) if g in part) for part in group.parts}
    order = [g for g in order if g not in spared] + [g for g in order if g in spared]
    floor = max(floor, math.ceil(len(spared) / tile) * tile)
    bundles: list[Bundle] = []
    kept = group.gates
    while True:
        after = (kept - 1) // tile * tile
        if after < floor:
            return bundles
        gates = order[group.gates - kept : group.gates - after]
        channels = tuple(g + b * group.gates for g in gates for b in range(group.blocks))
        loss = 0.5 * float(values[gates].sum())
        if not math.isfinite(loss):  # sorted last: a channel that can't be judged stays
            return bundles
        macs = group.macs_per_channel * len(channels)
        unit = macs if cost == "macs" else float(len(channels))
        bundles.append(Bundle(channels, loss, macs, loss / max(unit, 1e-12)))
        kept = after
