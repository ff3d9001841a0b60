"""What pruning would cost a model, foretold from one validation pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hqp_lightning.records.export import QuantizedLayer
from hqp_lightning.records.pruning import GroupNote

__all__ = ["Advice", "Look", "LookPoint", "PricedPart"]


@dataclass(frozen=True, slots=True)
class LookPoint:
    """A cut in one shot, with no healing; nothing was cut.

    Attributes:
        macs_removed: fraction of the dense MACs, counted on the cut structure.
        predicted_loss_increase: half the sum of the removed Fisher values of the dense network, nats.
        macs: of what is left, for one sample.
        params: of what is left.
        channels: how many are removed.
        units: keys of the units that go as a whole.
        latency_ms: of the INT8 network, by the latency table; None where there is none.
    """

    macs_removed: float
    predicted_loss_increase: float
    macs: float
    params: int
    channels: int
    units: tuple[str, ...] = ()
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class PricedPart:
    """A coupled group of channels, or a unit, with what it costs and what it saves by itself.

    Attributes:
        name: of the layer from which a group is pruned, or of the module.
        kind: ``"channels"``, ``"gate"`` or ``"branch"``.
        channels: of a group; 0 for a unit.
        loss: half the sum of its Fisher values, nats.
        cheaper_half: that of the less salient half of its channels; a unit's whole loss.
        macs: MACs that go with all of it, for one sample.
        params: parameters that go with all of it.
    """

    name: str
    kind: str
    channels: int
    loss: float
    cheaper_half: float
    macs: float
    params: int


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommended setting of ``HQPPruning``, and why."""

    setting: str
    value: float
    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """What pruning would cost, foretold; ``look.json`` is this record, field by field.

    Attributes:
        network: name of its class.
        samples: validation samples behind the prices.
        metrics: what validation logged on them.
        macs: of the dense network, for one sample.
        params: of the dense network.
        channels: cuts of channels alone, from small to large.
        with_units: the same with gates and branches next to channels; empty where there are none.
        parts: the groups and units, in the order of the network.
        kept: what can't be pruned, or only approximately, and why.
        advice: settings to begin with.
        quantization: noise of the dense network's logits with one layer alone in INT8; empty where it can't be written.
        int8_noise: with all of its layers in INT8; None likewise.
        latency_ms: of the dense INT8 network, by the latency table; None where there is none.
        remarks: what a reader must know, a sentence each.
        versions: package to version.
        schema_version: of this record.
    """

    network: str
    samples: int
    metrics: Mapping[str, float]
    macs: float
    params: int
    channels: tuple[LookPoint, ...]
    with_units: tuple[LookPoint, ...]
    parts: tuple[PricedPart, ...]
    kept: tuple[GroupNote, ...]
    advice: tuple[Advice, ...]
    quantization: tuple[QuantizedLayer, ...] = ()
    int8_noise: float | None = None
    latency_ms: float | None = None
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = 1
