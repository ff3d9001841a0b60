"""From the facts of a run to its `Report`: what can be derived is derived here, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import (
    Budget,
    ComparedTensor,
    CompiledEngine,
    EngineReport,
    GroupNote,
    GroupSensitivity,
    LatencyFigures,
    LayerChannels,
    ModelFigures,
    QuantizedLayer,
    Report,
    StepRecord,
    UnitSensitivity,
)

__all__ = ["assemble", "fastest_within", "speed_pair", "twin", "worsening"]

BACKEND_PREFERENCE = ("tensorrt", "openvino", "onnxruntime")
"""Whose latency is quoted: the target's own engine first; onnxruntime's INT8 is exact but no speed figure."""

BUDGET_TOLERANCE = 1e-9
"""0.925 - 0.910 is 0.015000000000000013 in binary; a drop of exactly the budget must count as within it."""


def worsening(reference: float, measured: float, mode: str) -> float:
    """How much worse ``measured`` is than ``reference``; negative when it is better.

    Args:
        reference: the score to hold.
        measured: the score reached.
        mode: ``"max"`` where larger is better (accuracy), ``"min"`` where smaller is (a loss).

    Returns:
        ``reference - measured`` for ``"max"``, ``measured - reference`` for ``"min"``.

    Raises:
        ConfigurationError: for any other mode.

    Examples:
        >>> worsening(0.75, 0.5, "max"), worsening(0.75, 0.5, "min")
        (0.25, -0.25)
    """
    if mode not in ("max", "min"):
        raise ConfigurationError(f"mode is {mode!r}; expected 'max' (larger is better) or 'min' (smaller is better)")
    return reference - measured if mode == "max" else measured - reference


def twin(engines: Iterable[EngineReport], of: EngineReport, model: str, precision: str) -> EngineReport | None:
    """The engine of ``model`` in ``precision`` that ran as ``of`` did: backend, device, batch and threads alike."""

    def conditions(engine: EngineReport) -> tuple[str, str, int, int]:
        return engine.backend, engine.device, engine.batch_size, engine.threads

    alike = [e for e in engines if (e.model, e.precision) == (model, precision) and conditions(e) == conditions(of)]
    return min(alike, key=lambda e: e.latency_ms.median, default=None)


def speed_pair(engines: Sequence[EngineReport]) -> tuple[EngineReport, EngineReport] | None:
    """The two engines that the quoted speedup compares, or None where no backend timed both.

    The fastest INT8 engine (of the pruned model, where there is one) on the most preferred backend that also
    timed the dense float32 model under the same conditions.

    Args:
        engines: all timed engines of the run.

    Returns:
        ``(dense fp32, int8)``, both of one backend, device, batch size and thread count.
    """
    others = dict.fromkeys(e.backend for e in engines if e.backend not in BACKEND_PREFERENCE)
    for backend in (*BACKEND_PREFERENCE, *others):
        int8 = [e for e in engines if e.backend == backend and e.precision == "int8"]
        for candidate in sorted(int8, key=lambda e: (e.model != "pruned", e.latency_ms.median)):
            dense = twin(engines, candidate, "dense", "fp32")
            if dense is not None:
                return dense, candidate
    return None


def fastest_within(engines: Iterable[EngineReport], budget: Budget, baseline: float) -> EngineReport | None:
    """The engine to deploy: the fastest of those whose own score is within the budget.

    Args:
        engines: all timed engines of the run; only those that were scored can be chosen.
        budget: what a score may lose.
        baseline: the score that it is held against.

    Returns:
        The one with the least median on the most preferred backend that has any; None where there is none.
    """

    def within(engine: EngineReport) -> bool:
        score = engine.accuracy
        return score is not None and worsening(baseline, score, budget.mode) <= budget.max_drop + BUDGET_TOLERANCE

    def rank(engine: EngineReport) -> tuple[int, float]:
        order = (*BACKEND_PREFERENCE, engine.backend)
        return order.index(engine.backend), engine.latency_ms.median

    return min(filter(within, engines), key=rank, default=None)


def assemble(
    budget: Budget,
    baseline: ModelFigures,
    pruned: ModelFigures,
    int8: ModelFigures,
    *,
    control: ModelFigures | None = None,
    samples: int | None = None,
    holdout_samples: int | None = None,
    steps: Iterable[StepRecord] = (),
    engines: Iterable[EngineReport] = (),
    compiled: Iterable[CompiledEngine] = (),
    channels: Iterable[LayerChannels] = (),
    sensitivity: Iterable[GroupSensitivity] = (),
    group_notes: Iterable[GroupNote] = (),
    quantization: Iterable[QuantizedLayer] = (),
    tensors: Iterable[ComparedTensor] = (),
    notes: Iterable[str] = (),
    versions: Mapping[str, str] | None = None,
    units_removed: Iterable[str] = (),
    latency: LatencyFigures | None = None,
    reference: float | None = None,
    units: Iterable[UnitSensitivity] = (),
) -> Report:
    """Put the facts of a run into one `Report`, with the figures that follow from them.

    Args:
        budget: the promise that the INT8 artifact is held to.
        baseline: the dense float model.
        pruned: the pruned float model (equal to ``baseline`` in structure where nothing was pruned).
        int8: the artifact that ships.
        control: the dense model trained for the same epochs, if it was.
        samples: how many the INT8 artifact's ``accuracy`` was measured on.
        holdout_samples: how many its ``holdout_accuracy`` was.
        steps: every pruning step with its outcome, in order.
        engines: every timed engine.
        compiled: engines for other machines.
        channels: output channels per layer, before and after.
        sensitivity: what the coupled groups of the dense model are worth.
        group_notes: the groups that were left out or approximated, with the reason.
        quantization: noise and precision of every layer that can be quantized.
        tensors: those of the float file beside the INT8 one's.
        notes: what a reader must know, one sentence each.
        versions: package versions; see the function `versions`.
        units_removed: keys of the units that the pruned model is without.
        latency: what a latency table predicted, if one ranked the channels.
        reference: the score that drops are measured from, if it is not the dense model's.
        units: what the units of the dense model are worth.

    Returns:
        The report. A drop is positive when the INT8 artifact is worse, whatever ``budget.mode``;
        ``size_reduction`` is 1 - INT8 bytes / dense bytes of the ONNX files, ``macs_reduction`` the same of MACs;
        ``speedup`` is the dense float32 median over the INT8 median of `speed_pair`, ``fastest_within_budget`` what
        `fastest_within` chooses.

    Raises:
        ConfigurationError: if ``budget.mode`` is unknown, or the baseline has no bytes or no MACs.
    """
    if baseline.file_bytes <= 0 or baseline.macs <= 0:
        raise ConfigurationError(
            f"the baseline has file_bytes={baseline.file_bytes} and macs={baseline.macs}; both must be positive, "
            "since reductions are given relative to them: export and count the dense model first"
        )

    def drop(reference: float | None, measured: float | None) -> float | None:
        return None if reference is None or measured is None else worsening(reference, measured, budget.mode)

    engines = tuple(engines)
    pair = speed_pair(engines)
    held_to = baseline.accuracy if reference is None else reference
    accuracy_drop = worsening(held_to, int8.accuracy, budget.mode)
    return Report(
        budget=budget,
        baseline=baseline,
        pruned=pruned,
        int8=int8,
        within_budget=accuracy_drop <= budget.max_drop + BUDGET_TOLERANCE,
        accuracy_drop=accuracy_drop,
        size_reduction=1 - int8.file_bytes / baseline.file_bytes,
        macs_reduction=1 - int8.macs / baseline.macs,
        speedup=pair[0].latency_ms.median / pair[1].latency_ms.median if pair else None,
        holdout_accuracy_drop=drop(baseline.holdout_accuracy, int8.holdout_accuracy),
        control=control,
        control_accuracy_drop=drop(control.accuracy, int8.accuracy) if control else None,
        control_holdout_accuracy_drop=drop(control.holdout_accuracy, int8.holdout_accuracy) if control else None,
        samples=samples,
        holdout_samples=holdout_samples,
        steps=tuple(steps),
        engines=engines,
        fastest_within_budget=fastest_within(engines, budget, held_to),
        compiled=tuple(compiled),
        channels=tuple(channels),
        sensitivity=tuple(sensitivity),
        group_notes=tuple(group_notes),
        quantization=tuple(quantization),
        tensors=tuple(tensors),
        notes=tuple(notes),
        versions=dict(versions or {}),
        units_removed=tuple(units_removed),
        latency=latency,
        reference=None if held_to == baseline.accuracy else held_to,
        units=tuple(units),
    )
