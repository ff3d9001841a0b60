"""Milliseconds of a network's structure, from a table of networks that were measured; and what removing a part saves.

Every part of a network has a time that grows with its channels,

    t = k₀ + k₁·⌈inputs⌉ + k₂·⌈outputs⌉ + k₃·⌈inputs⌉·⌈outputs⌉

no k below zero and ⌈·⌉ the next whole step of the engine's staircase, fitted, by absolute errors, to what its counters
said of it in the table's networks. One that is no full convolution or linear layer grows with its outputs alone. The
network's time is

    T = a·Σ t + b

with *a* and *b* fitted likewise to the networks as a whole: counters slow an engine down, and a call has a cost of its
own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hqp_lightning.core.deviations import least_deviations
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import ChannelGroup, LatencyTable, NetworkTime

__all__ = ["Price", "Widths", "changes", "price_of"]

Widths = Mapping[str, tuple[float, ...]]
"""A structure: the layers that there are, by name, with their input and output channels."""

_STEPS = (1, 8, 16, 32)
_FLOOR_MS = 1e-3  # what counters tell: an error beyond it counts as such, not as its square
_FLOOR = 0.05  # of a network's time: as they differ from build to build
_ABOUT, _NOTHING = 1.03, 1e-9


@dataclass(frozen=True)
class Price:
    """A table, and what follows from it.

    Attributes:
        table: of the network, from whichever machine.
    """

    table: LatencyTable

    @cached_property
    def dense(self) -> NetworkTime:
        """The dense INT8 network."""
        return next(n for n in self.table.networks if n.precision == "int8")

    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(self.dense.widths)

    def ms(self, widths: Widths) -> float:
        """Milliseconds of a structure."""
        a, b = self._whole
        return a * self.of(self.table.parts, widths) + b

    def saved(self, before: Widths, after: Widths, changed: Iterable[str]) -> float:
        """Milliseconds that a change of some layers saves.

        Args:
            before: a structure.
            after: another one; layers may be gone.
            changed: the layers that are not the same in both.
        """
        touched = self.parts_of(changed)
        return self._whole[0] * (self.of(touched, before) - self.of(touched, after))

    def parts_of(self, layers: Iterable[str]) -> set[str]:
        """The parts whose time may change with these layers."""
        return {part for layer in layers for part in self._touched.get(layer, ())}

    def of(self, parts: Iterable[str], widths: Widths) -> float:
        """The sum of these parts by the engine's counters, milliseconds; those that are gone cost nothing."""
        return sum(self._part(name, widths) for name in parts)

    @property
    def dense_ms(self) -> float:
        """Predicted milliseconds of the dense INT8 network."""
        return self.ms(self.dense.widths)

    def measured(self, precision: str) -> float | None:
        """Milliseconds that were measured of the dense network; None if they were not."""
        return next((n.ms for n in self.table.networks if n.precision == precision), None)

    @cached_property
    def step(self) -> int:
        """Channels of a step of the staircase: the coarsest of those that explain the parts about as well as the best.

        One too fine would sell channels that save nothing; one too coarse only takes more of them at once.
        """
        errors = {step: sum(self._fit(name, step)[1] for name in self.table.parts) for step in _STEPS}
        return max(step for step, error in errors.items() if error <= _ABOUT * min(errors.values()) + _NOTHING)

    @cached_property
    def _fits(self) -> dict[str, tuple[float, ...]]:
        return {name: self._fit(name, self.step)[0] for name in self.table.parts}

    @cached_property
    def _whole(self) -> tuple[float, float]:
        known = [n for n in self.table.networks if n.precision == "int8"]
        rows = np.array([[self.of(self.table.parts, n.widths), 1.0] for n in known])
        ms = np.array([n.ms for n in known])
        (a, b), _ = least_deviations(rows, ms, _FLOOR * float(np.median(ms)))
        return a, b

    @cached_property
    def _touched(self) -> dict[str, tuple[str, ...]]:
        """Layer to the parts whose time may depend on it."""
        found: dict[str, list[str]] = {}
        for name in self.table.parts:
            for layer in {*self.table.parts[name].layers, *(n for home in self._homes[name] for n in home)}:
                found.setdefault(layer, []).append(name)
        return {layer: tuple(names) for layer, names in found.items()}

    @cached_property
    def _homes(self) -> dict[str, tuple[frozenset[str], ...]]:
        """Part to the layers of each module that it lies in: without all of one's it is gone."""
        layers = self.layers()
        found: dict[str, tuple[frozenset[str], ...]] = {}
        for name, part in self.table.parts.items():
            if name in self.dense.widths:
                found[name] = (frozenset([name]),)
                continue
            steps = part.module.split(".") if part.module else []
            around = [".".join(steps[: k + 1]) for k in range(len(steps))]
            inside = (frozenset(n for n in layers if n.startswith(f"{m}.")) for m in around)
            found[name] = tuple(i for i in inside if i)
        return found

    def _part(self, name: str, widths: Widths) -> float:
        if not self._there(name, widths):
            return 0.0
        return sum(k * x for k, x in zip(self._fits[name], self._features(name, widths, self.step), strict=True))

    def _there(self, name: str, widths: Widths) -> bool:
        return not any(home.isdisjoint(widths) for home in self._homes[name])

    def _features(self, name: str, widths: Widths, step: int) -> tuple[float, ...]:
        part = self.table.parts[name]
        dense = self.dense.widths[part.layers[0]]
        inputs, outputs = next((widths[n] for n in part.layers if n in widths), dense)
        i, o = (-(-w // step) * step for w in (inputs, outputs))
        return (1.0, o) if part.per_channel else (1.0, i, o, i * o)

    def _fit(self, name: str, step: int) -> tuple[tuple[float, ...], float]:
        known = [n for n in self.table.networks if n.precision == "int8" and self._there(name, n.widths)]
        rows = np.array([self._features(name, n.widths, step) for n in known])
        ms = np.array([n.parts.get(name, 0.0) for n in known])  # in some it may be fused with another
        found, errors = least_deviations(rows, ms, _FLOOR_MS)
        return found, float(errors.sum() / (ms.mean() + _FLOOR_MS))


def price_of(table: LatencyTable, widths: Widths, source: str = "the latency table") -> Price:
    """Bind a table to a network.

    Args:
        table: see `Price`.
        widths: of the dense network.
        source: of the table, for messages.

    Raises:
        ConfigurationError: it is of another network.
    """
    price = Price(table)
    if not any(n.precision == "int8" for n in table.networks):
        raise ConfigurationError(f"{source} has no INT8 network: make it again.")
    known = price.dense.widths
    missing, extra = sorted(set(widths) - set(known)), sorted(set(known) - set(widths))
    if missing or extra:
        raise ConfigurationError(
            f"{source} is of another network: it has {len(known)} layers, this one {len(widths)}; "
            f"{_some('it lacks', missing)}{_some('only it has', extra)}make it of this network."
        )
    for name, (i, o) in widths.items():
        if tuple(known[name]) != (i, o):
            there = "→".join(map(str, known[name]))
            raise ConfigurationError(
                f"{source} is of another network: layer {name!r} is {there} there and {i}→{o} here."
            )
    return price


def _some(what: str, names: Sequence[str]) -> str:
    return f"{what} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; " if names else ""


def changes(group: ChannelGroup, layers: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Layer name to the input and output channels that it loses with one channel of a group."""
    known = set(layers)
    found: dict[str, tuple[float, float]] = {}
    for c in group.consumers:
        inputs, outputs = found.get(c.module, (0.0, 0.0))
        found[c.module] = inputs + len(c.inputs) / group.channels, outputs
    for f in group.filters:
        name, _, what = f.parameter.rpartition(".")
        if what == "weight":
            inputs, outputs = found.get(name, (0.0, 0.0))
            found[name] = inputs, outputs + len(f.indices) / group.channels
    return {name: lost for name, lost in found.items() if name in known}
