"""What a step shall save, in MACs or in milliseconds, and the step that does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hqp_lightning.core.fastest import propose_fastest
from hqp_lightning.core.latency import Price
from hqp_lightning.core.selection import Caps, propose
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.records import ChannelGroup, PruningStep, Unit
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import Shadow

__all__ = ["OVER", "Wanted", "after", "ends_in_macs", "proposed", "target_ms", "wanted"]

OVER, SHORT = 1.5, 0.5
"""So much of the wanted milliseconds a step saves at most, and at least, where that is predicted to cost less."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a step shall save: MACs of one sample; where a table prices it milliseconds, and MACs at most."""

    macs: float
    ms: float | None = None

    @property
    def nothing(self) -> bool:
        """Whether all of it is saved."""
        return self.macs <= 0 or self.ms is not None and self.ms <= 0

    def parts(self, shadow: Shadow, state: PruningState, share: float) -> int:
        """In how many parts no more than ``share`` of the network's MACs, or of its time, goes at once."""
        amount, of = (self.macs, shadow.macs) if self.ms is None else (self.ms, milliseconds(shadow, state) or math.inf)
        return max(1, math.ceil(amount / (share * of) - 1e-9))

    def half(self) -> Wanted:
        """Half of it."""
        return Wanted(self.macs / 2) if self.ms is None else Wanted(self.macs, self.ms / 2)

    def part(self, parts: int) -> Wanted:
        """One of so many equal parts; MACs are only a limit where milliseconds are wanted."""
        return Wanted(self.macs / parts) if self.ms is None else Wanted(self.macs, self.ms / parts)

    def after(self, before: Shadow, now: Shadow, state: PruningState) -> Wanted:
        """What is still to be saved when a network became another."""
        ms, left = self.ms, self.macs - (before.macs - now.macs)
        was, is_ = milliseconds(before, state), milliseconds(now, state)
        return Wanted(left, None if ms is None or was is None or is_ is None else ms - (was - is_))


def milliseconds(shadow: Shadow, state: PruningState) -> float | None:
    """The latency that the table predicts of a network; None where there is none."""
    return None if state.price is None else state.price.ms(shadow.widths(state.price.layers()))


def wanted(shadow: Shadow, state: PruningState, options: PruningOptions) -> Wanted:
    """The search's step as a saving, cut down to what the targets ask for."""
    left = _to_the_target(shadow, state, options)
    if state.price is None:
        return Wanted(min(state.search.step * state.dense_macs, left))
    now, ms = state.price.ms(shadow.widths(state.price.layers())), state.search.step * state.price.dense_ms
    target = target_ms(state.price, options)
    return Wanted(left, ms if target is None else min(ms, now - target))


def ends_in_macs(shadow: Shadow, state: PruningState, options: PruningOptions) -> bool:
    """Whether this step is to reach ``target_macs``, where MACs are what it is chosen by."""
    step = (state.search.step + 1e-9) * state.dense_macs  # 1 - 0.3 is less than 0.7 for some numbers of MACs
    return state.price is None and _to_the_target(shadow, state, options) <= step


def _to_the_target(shadow: Shadow, state: PruningState, options: PruningOptions) -> float:
    """MACs that ``target_macs`` still asks for; infinity where there is none."""
    return math.inf if options.target_macs is None else shadow.macs - options.target_macs * state.dense_macs


def after(shadow: Shadow, step: PruningStep, state: PruningState) -> float | None:
    """The latency that a step is predicted to leave, milliseconds; None where there is no table."""
    now = milliseconds(shadow, state)
    return None if now is None else now - step.ms_saved


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
    saliency: Mapping[str, Tensor],
) -> PruningStep:
    """The cheapest step of these groups and units by what ``cost`` says; nothing is proved yet.

    By milliseconds one tile or unit may be several times what is wanted. It then goes only if nothing of the size that
    is wanted is predicted to cost less.
    """
    if state.price is None or wanted.ms is None:
        return propose(groups, saliency, wanted.macs, caps, options.cost, units)
    widths = shadow.widths(state.price.layers())
    of = groups, saliency, widths, state.price, wanted.ms, wanted.macs, caps, units
    step, most = propose_fastest(*of), OVER * wanted.ms
    while most < step.ms_saved:
        smaller = propose_fastest(*of, most)
        cheaper = smaller.predicted_loss_increase < step.predicted_loss_increase
        if cheaper and smaller.ms_saved >= SHORT * wanted.ms:
            return smaller
        most *= 2
    return step
