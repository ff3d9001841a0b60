"""What a step shall save, in MACs or in milliseconds, and the step that does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hqp_lightning.core.fastest import propose_fastest
from hqp_lightning.core.latency import Price
from hqp_lightning.core.selection import Caps, propose
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.records import ChannelGroup, PruningStep, Unit
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import Shadow

__all__ = ["Wanted", "after", "proposed", "target_ms", "wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a step shall save: MACs of one sample; where a table prices it milliseconds, and MACs at most."""

    macs: float
    ms: float | None = None


def wanted(shadow: Shadow, state: PruningState, options: PruningOptions) -> Wanted:
    """The search's step as a saving, cut down to what the targets ask for."""
    left = math.inf if options.target_macs is None else shadow.macs - options.target_macs * state.dense_macs
    if state.price is None:
        return Wanted(min(state.search.step * state.dense_macs, left))
    now, ms = state.price.ms(shadow.widths(state.price.layers())), state.search.step * state.price.dense_ms
    target = target_ms(state.price, options)
    return Wanted(left, ms if target is None else min(ms, now - target))


def after(shadow: Shadow, step: PruningStep, state: PruningState) -> float | None:
    """The latency that a step is predicted to leave, milliseconds; None where there is no table."""
    return None if state.price is None else state.price.ms(shadow.widths(state.price.layers())) - step.ms_saved


def target_ms(price: Price, options: PruningOptions) -> float | None:
    """The latency at which the search ends, milliseconds; None if none was asked for."""
    dense, targets = price.measured("fp32"), []
    if options.target_speedup is not None and dense is not None:
        targets.append(dense / options.target_speedup)
    if options.target_latency_ms is not None:
        targets.append(options.target_latency_ms)
    return max(targets, default=None)


def proposed(
    shadow: Shadow,
    groups: Sequence[ChannelGroup],
    units: Sequence[Unit],
    wanted: Wanted,
    caps: Caps,
    state: PruningState,
    options: PruningOptions,
) -> PruningStep:
    """The cheapest step of these groups and units by what ``cost`` says; nothing is proved yet."""
    saliency = state.saliency or {}
    if state.price is None or wanted.ms is None:
        return propose(groups, saliency, wanted.macs, caps, options.cost, units)
    widths = shadow.widths(state.price.layers())
    return propose_fastest(groups, saliency, widths, state.price, wanted.ms, wanted.macs, caps, units)
