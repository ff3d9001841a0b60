"""The facts of a run, one frozen record each; the unit stands in the name where it is not obvious.

Accuracies and drops are fractions of one (0.015 is 1.5 points). MACs count one multiply-accumulate of a
convolution or linear layer for one sample. Sizes are bytes. Times are milliseconds or seconds, as named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "Budget",
    "ChannelGroup",
    "Consumer",
    "EngineReport",
    "Filters",
    "Latency",
    "LayerChannels",
    "MethodComparison",
    "MethodFigures",
    "ModelFigures",
    "OnnxArtifact",
    "PruningStep",
    "Report",
    "StepRecord",
    "Verdict",
]


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


@dataclass(frozen=True, slots=True)
class PruningStep:
    """Which channels to remove; a proposal, nothing has changed yet.

    Attributes:
        removed: group name to sorted channel indices, in the numbering of the model as it stands.
        predicted_loss_increase: half the sum of the removed channels' Fisher values (second order, nats).
        macs_saved: predicted MACs saved, for one sample.
    """

    removed: Mapping[str, tuple[int, ...]]
    predicted_loss_increase: float
    macs_saved: float

    @property
    def channels(self) -> int:
        """Number of channels removed, over all groups."""
        return sum(len(v) for v in self.removed.values())


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
    broken the model, so was not made). ``macs`` and ``params`` are those of the pruned candidate.
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


@dataclass(frozen=True, slots=True)
class Budget:
    """The promise: the monitored metric may be worse than the baseline by at most ``max_drop``."""

    max_drop: float
    monitor: str
    mode: str = "max"


@dataclass(frozen=True, slots=True)
class OnnxArtifact:
    """An ONNX file with what one needs to run it. ``input_shape`` is of one sample, without the batch axis."""

    path: str
    file_bytes: int
    sha256: str
    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    opset: int


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One stage of the model: dense baseline, pruned float, or the INT8 artifact.

    ``accuracy`` is on the decision split, ``holdout_accuracy`` on data that no decision saw (None: no such split).
    """

    accuracy: float
    macs: float
    params: int
    file_bytes: int
    holdout_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one inference call (wall time; on TensorRT GPU time), over ``runs`` calls after a warm-up."""

    median: float
    p95: float
    runs: int = 0


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A timed engine. ``model`` is ``"dense"`` or ``"pruned"``; ``precision`` ``"fp32"``, ``"fp16"`` or ``"int8"``."""

    backend: str
    model: str
    precision: str
    latency_ms: Latency
    batch_size: int
    threads: int
    device: str
    path: str
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class LayerChannels:
    """Output channels of one layer in the dense and in the final model."""

    layer: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A node of the ONNX graph that can be quantized. ``precision`` is ``"int8"`` or ``"float"``.

    ``noise`` is what quantizing it alone does to the logits: squared error over signal, see `quantization_noise`.
    """

    layer: str
    noise: float
    precision: str


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a run; ``report.json`` is this record, field by field."""

    budget: Budget
    baseline: ModelFigures
    pruned: ModelFigures
    int8: ModelFigures
    within_budget: bool
    accuracy_drop: float
    size_reduction: float
    macs_reduction: float
    speedup: float | None
    holdout_accuracy_drop: float | None = None
    control: ModelFigures | None = None
    control_accuracy_drop: float | None = None
    control_holdout_accuracy_drop: float | None = None
    samples: int | None = None
    holdout_samples: int | None = None
    steps: tuple[StepRecord, ...] = ()
    engines: tuple[EngineReport, ...] = ()
    channels: tuple[LayerChannels, ...] = ()
    quantization: tuple[QuantizedLayer, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = 1


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """A row of the paper's comparison: what one method makes of the dense model; drops and reductions as in `Report`.

    ``latency_ms`` is None where it was not timed, and so is ``speedup`` (dense float32 median over this one's).
    """

    method: str
    figures: ModelFigures
    accuracy_drop: float
    size_reduction: float
    holdout_accuracy_drop: float | None = None
    latency_ms: Latency | None = None
    speedup: float | None = None


@dataclass(frozen=True, slots=True)
class MethodComparison:
    """Several methods on one dense model, timed in turn in one process; ``comparison.json`` is this record.

    ``engines`` are all that were timed; those of one backend, in the order of its preference, give the rows' latencies.
    """

    budget: Budget
    methods: tuple[MethodFigures, ...]
    engines: tuple[EngineReport, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = 1
