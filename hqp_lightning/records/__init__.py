"""The facts of a run, one frozen record each; the unit stands in the name where it is not obvious.

Accuracies and drops are fractions of one (0.015 is 1.5 points). MACs count one multiply-accumulate of a
convolution or linear layer for one sample. Sizes are bytes. Times are milliseconds or seconds, as named.
"""

from hqp_lightning.records.export import (
    ComparedTensor,
    CompiledEngine,
    EngineReport,
    Latency,
    ModelTensor,
    OnnxArtifact,
    QuantizedLayer,
)
from hqp_lightning.records.latency import LatencyFigures, LatencyTable, NetworkTime, Part
from hqp_lightning.records.look import Advice, Look, LookPoint, PricedPart
from hqp_lightning.records.pruning import (
    Budget,
    ChannelGroup,
    Consumer,
    Filters,
    GroupNote,
    PruningStep,
    StepRecord,
    Verdict,
)
from hqp_lightning.records.report import (
    GroupSensitivity,
    LayerChannels,
    MethodComparison,
    MethodFigures,
    ModelFigures,
    Report,
    UnitSensitivity,
)
from hqp_lightning.records.units import BRANCH, GATE, UNIT_KINDS, Unit, unit_of

__all__ = [
    "BRANCH",
    "GATE",
    "UNIT_KINDS",
    "Advice",
    "Budget",
    "ChannelGroup",
    "ComparedTensor",
    "CompiledEngine",
    "Consumer",
    "EngineReport",
    "Filters",
    "GroupNote",
    "GroupSensitivity",
    "Latency",
    "LatencyFigures",
    "LatencyTable",
    "LayerChannels",
    "Look",
    "LookPoint",
    "MethodComparison",
    "MethodFigures",
    "ModelFigures",
    "ModelTensor",
    "NetworkTime",
    "OnnxArtifact",
    "Part",
    "PricedPart",
    "PruningStep",
    "QuantizedLayer",
    "Report",
    "StepRecord",
    "Unit",
    "UnitSensitivity",
    "Verdict",
    "unit_of",
]
