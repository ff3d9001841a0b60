"""Reports: the figures of a model, of a run, and of several methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hqp_lightning.records.export import ComparedTensor, CompiledEngine, EngineReport, Latency, QuantizedLayer
from hqp_lightning.records.latency import LatencyFigures
from hqp_lightning.records.pruning import Budget, GroupNote, StepRecord

__all__ = [
    "GroupSensitivity",
    "LayerChannels",
    "MethodComparison",
    "MethodFigures",
    "ModelFigures",
    "Report",
    "UnitSensitivity",
]


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
class LayerChannels:
    """Output channels of one layer in the dense and in the final model."""

    layer: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class GroupSensitivity:
    """What the channels of one coupled group of the dense model are worth: predicted rises of the loss, nats.

    ``whole`` is half the sum of its Fisher values, ``cheaper_half`` that of the lower half of them. Sums of single
    removals: they say what is cheap, not what the loss would be without the group.
    """

    group: str
    channels: int
    cheaper_half: float
    whole: float


@dataclass(frozen=True, slots=True)
class UnitSensitivity:
    """What a unit of the dense model is worth: predicted rises of the loss, nats.

    ``fisher`` is half its Fisher value. ``rise`` is by how much the loss rose without it, on the samples that it was
    tried with; None for what was not. ``loss`` is what it was ranked by, on the scale of half the Fisher values.
    """

    unit: str
    fisher: float
    rise: float | None
    loss: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a run; ``report.json`` is this record, field by field.

    ``reference`` is the score that drops are measured from where that is not ``baseline.accuracy``, the dense model's.
    """

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
    fastest_within_budget: EngineReport | None = None
    compiled: tuple[CompiledEngine, ...] = ()
    channels: tuple[LayerChannels, ...] = ()
    sensitivity: tuple[GroupSensitivity, ...] = ()
    group_notes: tuple[GroupNote, ...] = ()
    quantization: tuple[QuantizedLayer, ...] = ()
    tensors: tuple[ComparedTensor, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    latency: LatencyFigures | None = None
    schema_version: int = 1
    units_removed: tuple[str, ...] = ()
    reference: float | None = None
    units: tuple[UnitSensitivity, ...] = ()

    @property
    def held_to(self) -> float:
        """The score that drops are measured from."""
        return self.baseline.accuracy if self.reference is None else self.reference


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
