"""Saliencies + a latency table -> the next pruning step: what is worth least accuracy for each millisecond."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hqp_lightning.core.latency import Price, Widths, changes
from hqp_lightning.core.selection import Bundle, Caps, bundles_of
from hqp_lightning.records import ChannelGroup, PruningStep, Unit

__all__ = ["propose_fastest"]

_NOTHING = 1e-6
"""Of the network's time: what saves less saves nothing."""
_BETTER = 0.999
"""Of the ratio of a shorter run: one as good is enough, as what follows is offered next."""


def propose_fastest(
    groups: Sequence[ChannelGroup],
    saliency: Mapping[str, Tensor],
    widths: Widths,
    price: Price,
    wanted_ms: float,
    wanted_macs: float = math.inf,
    caps: Caps | None = None,
    units: Sequence[Unit] = (),
    most_ms: float = math.inf,
) -> PruningStep:
    """Cheapest first by predicted loss increase per millisecond, until the step saves ``wanted_ms``.

    Latency is a staircase, and what a bundle saves depends on what went before it. So each group offers, of all runs
    of its next bundles, the one with the least loss per millisecond *as the network then stands*: a tile that saves
    nothing by itself goes only together with those that end the step. A unit offers the time of all that lies inside.

    Args:
        groups: coupled groups of the model as it stands.
        saliency: as for `hqp_lightning.core.selection.propose`.
        widths: input and output channels of every layer as it stands.
        price: milliseconds of a structure.
        wanted_ms: milliseconds to save.
        wanted_macs: MACs to save at most, unless a bundle overshoots: the piece that would save the last of them, a
            long run of tiles or a unit, gives way to the one that does so for the least loss.
        caps: rounding and limits.
        units: modules that may go as a whole.
        most_ms: what would save more altogether does not go, even if the step then saves less than was wanted.

    Returns:
        The step; empty if nothing saves any time, or everything too much.
    """
    search = _Greedy(groups, saliency, widths, price, caps or Caps(), units, most_ms)
    while search.saved_ms < wanted_ms and search.saved_macs < wanted_macs and search.take_best():
        pass
    search.end_at(wanted_macs)
    return search.step()


@dataclass(frozen=True, slots=True)
class _Offer:
    bundles: int
    ms: float
    ratio: float


class _Greedy:
    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        saliency: Mapping[str, Tensor],
        widths: Widths,
        price: Price,
        caps: Caps,
        units: Sequence[Unit],
        most_ms: float,
    ) -> None:
        self.start, self.price = {n: (float(i), float(o)) for n, (i, o) in widths.items()}, price
        self.widths, self.most_ms = dict(self.start), most_ms
        self.least = _NOTHING * price.ms(widths)
        self.bundles: dict[str, list[Bundle]] = {
            g.name: bundles_of(g, saliency[g.name], caps) for g in groups if g.name in saliency
        }
        self.changes = {g.name: changes(g, widths) for g in groups}
        self.units = {u.key: u for u in units if u.key in saliency}
        for key, unit in self.units.items():
            loss = 0.5 * float(saliency[key].sum())
            self.bundles[key] = [Bundle((), loss, unit.macs, 0.0)] if math.isfinite(loss) else []
        self.taken: dict[str, int] = {}
        self.before = dict(self.taken), dict(self.bundles)  # as they were when the last offer was taken
        self.offers: dict[str, _Offer | None] = {}

    @property
    def saved_ms(self) -> float:
        return self.price.ms(self.start) - self.price.ms(self.widths)

    @property
    def saved_macs(self) -> float:
        return sum(b.macs for name, n in self.taken.items() for b in self.bundles[name][:n])

    def take_best(self) -> bool:
        """Take the best offer; False if there is none."""
        room = self.most_ms - self.saved_ms
        for name in self.bundles:
            known = self.offers.get(name)
            if name not in self.offers or (known is not None and known.ms > room):
                self.offers[name] = self._offer(name, room)
        found = [(offer.ratio, name) for name, offer in self.offers.items() if offer is not None]
        if not found:
            return False
        _, name = min(found)
        offer = self.offers[name]
        self.before = dict(self.taken), dict(self.bundles)
        self._take(name, self.taken.get(name, 0) + (offer.bundles if offer else 0))
        return True

    def end_at(self, macs: float) -> None:
        """For what was taken last, which may save far more MACs, stands what saves enough at the least loss."""
        if self.saved_macs < macs:
            return
        whole = self.taken, self.bundles
        self.taken, self.bundles = self.before
        missing, ends = macs - self.saved_macs, []
        for name, bundles in self.bundles.items():
            done, saved, loss = self.taken.get(name, 0), 0.0, 0.0
            for count, bundle in enumerate(bundles[done:], done + 1):
                saved, loss = saved + bundle.macs, loss + bundle.loss
                if saved >= missing:
                    ends.append((loss, name, count))
                    break
        if ends:
            self._take(*min(ends)[1:])
        else:  # sums in another order: a hair is missing
            self.taken, self.bundles = whole

    def _take(self, name: str, count: int) -> None:
        """So many bundles of a group, or a unit; what lies inside of it goes along."""
        self.taken[name] = count
        if name in self.units:
            unit = self.units[name]
            for other in [n for n in self.bundles if unit.holds(self.units[n].name if n in self.units else n)]:
                del self.bundles[other]
                self.taken.pop(other, None)
        self._settle()

    def step(self) -> PruningStep:
        taken = {name: self.bundles[name][:n] for name, n in self.taken.items()}
        removed = {
            n: tuple(sorted(c for b in bs for c in b.channels)) for n, bs in taken.items() if n not in self.units
        }
        loss = sum(b.loss for bs in taken.values() for b in bs)
        units = tuple(sorted(n for n in taken if n in self.units))
        return PruningStep(removed, loss, self.saved_macs, units, self.saved_ms)

    def _settle(self) -> None:
        """The widths after all that was taken; offers that this changes are forgotten."""
        before, self.widths = self.widths, dict(self.start)
        for key in self.taken.keys() & self.units.keys():
            self.widths = {n: w for n, w in self.widths.items() if not self.units[key].holds(n)}
        for name in self.taken.keys() - self.units.keys():
            gone = sum(len(b.channels) for b in self.bundles[name][: self.taken[name]])
            self.widths |= self._without(name, gone)
        touched = {n for n in before if before[n] != self.widths.get(n)}
        parts = self.price.parts_of(touched)
        self.offers = {
            name: offer
            for name, offer in self.offers.items()
            if name in self.bundles and parts.isdisjoint(self.price.parts_of(self._layers(name)))
        }

    def _layers(self, name: str) -> set[str]:
        if name in self.units:
            return {n for n in self.start if self.units[name].holds(n)}
        return set(self.changes[name])

    def _without(self, name: str, channels: int) -> dict[str, tuple[float, float]]:
        """The widths of a group's layers, that are there, when so many more of its channels are gone."""
        found = {}
        for layer, (inputs, outputs) in self.changes[name].items():
            if layer in self.widths:
                i, o = self.widths[layer]
                found[layer] = i - inputs * channels, o - outputs * channels
        return found

    def _offer(self, name: str, room: float) -> _Offer | None:
        """Of all runs of the next bundles, that save no more than ``room``, the one with the least loss for each ms."""
        layers = self._layers(name)
        if name in self.units:
            without = {n: w for n, w in self.widths.items() if n not in layers}
            saved = self.price.saved(self.widths, without, layers)
            return None if name in self.taken else self._worth(1, saved, self.bundles[name][:1], room)
        done, best = self.taken.get(name, 0), None
        rest = self.bundles[name][done:]
        channels = 0
        for count in range(1, len(rest) + 1):
            channels += len(rest[count - 1].channels)
            saved = self.price.saved(self.widths, {**self.widths, **self._without(name, channels)}, layers)
            offer = self._worth(count, saved, rest[:count], room)
            if offer is not None and (best is None or offer.ratio < _BETTER * best.ratio):
                best = offer
        return best

    def _worth(self, count: int, saved: float, bundles: Sequence[Bundle], room: float) -> _Offer | None:
        if not self.least < saved <= room or not bundles:
            return None
        return _Offer(count, saved, sum(b.loss for b in bundles) / saved)
