"""Latency tables: what the parts of a network cost on an engine, seen in whole networks of several widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LatencyFigures", "LatencyTable", "NetworkTime", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """What an engine runs of a network for one of its layers, or between them.

    Attributes:
        module: name of the module that it lies in; it goes with a unit that holds that one.
        layers: whose channels it works on: the layer itself, or those that write what it reads, nearest first.
        per_channel: its work grows with the channels that come out alone: all but full convolutions and linear layers.
    """

    module: str
    layers: tuple[str, ...]
    per_channel: bool = True


@dataclass(frozen=True, slots=True)
class NetworkTime:
    """A network that was measured as a whole.

    Attributes:
        name: for people.
        precision: ``"int8"``, as exported, or ``"fp32"``.
        widths: layer name to its input and output channels; layers that went with a unit are not in it.
        ms: of one call.
        parts: milliseconds of its parts by the engine's own counters, which slow it down; empty for a float network.
    """

    name: str
    precision: str
    widths: Mapping[str, tuple[int, ...]]
    ms: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """What `hqp_lightning.core.latency` predicts from; ``latency_table.json`` is this record.

    Attributes:
        engine: the runtime, with its ``version``, on ``device`` with ``threads`` (0 on a GPU).
        clock: what the milliseconds are: ``"processor"`` time, ``"wall"`` time or ``"gpu"`` time.
        batch_size: samples of a call.
        inputs: shapes of a sample.
        parts: by name: a layer's is its own, another's that of a node in the file.
        networks: the dense network in float and INT8, and INT8 networks of drawn widths.
    """

    engine: str
    version: str
    device: str
    threads: int
    clock: str
    batch_size: int
    inputs: tuple[tuple[int, ...], ...]
    parts: Mapping[str, Part]
    networks: tuple[NetworkTime, ...]
    schema_version: int = 1


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """What a table predicted of the INT8 model that ships, and what was measured of it as the table was.

    ``dense_float_ms`` and ``dense_int8_ms`` are those of the table, measured before the first step; None where it has
    none. ``measured_ms``, and the dense float network's beside it, are of the end of the run: a machine drifts, their
    ratios do not. They are None where the table is of another machine.
    """

    engine: str
    version: str
    device: str
    threads: int
    clock: str
    predicted_ms: float
    dense_float_ms: float | None = None
    dense_int8_ms: float | None = None
    measured_ms: float | None = None
    measured_dense_float_ms: float | None = None
