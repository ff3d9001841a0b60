"""Pruning: coupled groups, a proposed step, the budget, and what became of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Budget", "ChannelGroup", "Consumer", "Filters", "GroupNote", "PruningStep", "StepRecord", "Verdict"]


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer that reads the channels of a coupled group at its input.

    Attributes:
        module: qualified module name.
        inputs: input channel (or feature) indices of the module that the group feeds.
        channels: for each of ``inputs``, the channel of the group that feeds it.
    """

    module: str
    inputs: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Filters:
    """The slices of a weight that write the channels of a coupled group: filter ``indices[i]`` writes ``channels[i]``.

    Attributes:
        parameter: qualified parameter name of a convolution's or linear layer's weight or bias.
        dim: the dimension that is sliced.
        indices: indices along ``dim``.
        channels: for each of ``indices``, the channel of the group.
    """

    parameter: str
    dim: int
    indices: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that can only be removed together (a coupled, or dependency, group).

    Attributes:
        name: qualified name of the layer from which the group is pruned (its root).
        channels: number of channels at the root.
        consumers: the layers that read the group; the gates of the Fisher estimate sit at their inputs.
        filters: the weight slices that write the group.
        macs_per_channel: MACs that vanish with one channel, for one sample.
        blocks: a grouped convolution ties channels: ``k, k + channels/blocks, k + 2 channels/blocks, ...`` share
            one gate and go together.
    """

    name: str
    channels: int
    consumers: tuple[Consumer, ...]
    filters: tuple[Filters, ...]
    macs_per_channel: float
    blocks: int = 1

    @property
    def gates(self) -> int:
        """Number of independent decisions: one gate per channel, or per tied set of channels."""
        return self.channels // self.blocks

    @property
    def parts(self) -> tuple[frozenset[int], ...]:
        """Sets of gates of which one must stay, smaller than the group: all that one layer reads or writes of it."""
        sides = [s.channels for s in self.consumers] + [s.channels for s in self.filters]
        sets = {frozenset(c % self.gates for c in channels) for channels in sides}
        return tuple(s for s in sorted(sets, key=sorted) if len(s) < self.gates)


@dataclass(frozen=True, slots=True)
class GroupNote:
    """A coupled group that is not like the others.

    Attributes:
        group: its name.
        channels: its number of channels.
        status: ``"left out"`` (nothing of it is pruned), or ``"approximate"`` (the pruned network is not exactly the
            dense one with the channels zeroed at their readers).
        reason: why.
    """

    group: str
    channels: int
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class PruningStep:
    """Which channels to remove; a proposal, nothing has changed yet.

    Attributes:
        removed: group name to sorted channel indices, in the numbering of the model as it stands.
        predicted_loss_increase: half the sum of the removed channels' and units' Fisher values (second order, nats).
        macs_saved: predicted MACs saved, for one sample.
        units: keys of the units that go as a whole, see `Unit`; they go first, the channels out of what is left.
        ms_saved: predicted milliseconds saved, where a latency table prices the step.
    """

    removed: Mapping[str, tuple[int, ...]]
    predicted_loss_increase: float
    macs_saved: float
    units: tuple[str, ...] = ()
    ms_saved: float = 0.0

    @property
    def channels(self) -> int:
        """Number of channels removed, over all groups."""
        return sum(len(v) for v in self.removed.values())

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """All that goes, as plain data: group names with their channels, then keys of units, which have none."""
        return {**self.removed, **dict.fromkeys(self.units, ())}


@dataclass(frozen=True, slots=True)
class Budget:
    """The promise: the monitored metric may be worse than the baseline by at most ``max_drop``."""

    max_drop: float
    monitor: str
    mode: str = "max"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a score means under a budget, with the reason in words."""

    kept: bool
    baseline: float
    measured: float
    drop: float
    max_drop: float
    reason: str


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One pruning step and what became of it.

    ``outcome`` is ``"kept"``, ``"rolled_back"`` (over budget or never judged) or ``"refused"`` (would have
    broken the model, so was not made). ``macs`` and ``params`` are those of the pruned candidate. ``batchnorm`` says
    what became of BatchNorm's running statistics; empty where there are none. ``units_removed`` are keys of `Unit`.
    ``predicted_ms`` is the latency of the candidate by a table, see `LatencyTable`; None where there is none.
    ``substeps`` are the parts in which it was made, each chosen by the scores of what the one before left.
    ``healing`` is the best score in each validated epoch from the step to its verdict. ``losses`` is what each group
    and unit that goes was predicted to cost, nats, by the scores that chose it.
    """

    index: int
    epoch: int
    outcome: str
    reason: str
    step: float
    channels_removed: int
    predicted_loss_increase: float
    macs: float
    params: int
    accuracy: float | None = None
    accuracy_drop: float | None = None
    surgery_s: float = 0.0
    batchnorm: str = ""
    units_removed: tuple[str, ...] = ()
    predicted_ms: float | None = None
    substeps: int = 1
    healing: tuple[float, ...] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
