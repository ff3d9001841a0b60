"""The rows that every table of a report shows: dense, control, pruned, INT8."""

from __future__ import annotations

from dataclasses import dataclass

from hqp_lightning.records import EngineReport, Latency, ModelFigures, Report
from hqp_lightning.report.assemble import speed_pair, twin, worsening

__all__ = ["ModelRow", "conditions", "model_rows"]


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One stage of the model with what follows from comparing it.

    ``drop`` is against the dense baseline and ``control_drop`` against the control, positive when worse;
    ``speedup`` is against the dense float32 engine.
    """

    name: str
    figures: ModelFigures
    drop: float | None = None
    holdout_drop: float | None = None
    control_drop: float | None = None
    control_holdout_drop: float | None = None
    latency_ms: Latency | None = None
    speedup: float | None = None


def _drops(
    report: Report, figures: ModelFigures, reference: ModelFigures | None, score: float | None = None
) -> tuple[float | None, float | None]:
    if reference is None:
        return None, None
    mode, held, ours = report.budget.mode, reference.holdout_accuracy, figures.holdout_accuracy
    return (
        worsening(reference.accuracy if score is None else score, figures.accuracy, mode),
        None if held is None or ours is None else worsening(held, ours, mode),
    )


def model_rows(report: Report) -> tuple[ModelRow, ...]:
    """The stages of the model in reading order.

    Args:
        report: the report to show.

    Returns:
        Dense, control (where there is one), pruned (where something was) and INT8. Latencies are those of one backend
        under one set of conditions: the pair that the quoted speedup compares, and the pruned float32 engine that ran
        as they did.
    """
    pair = speed_pair(report.engines)
    dense = pair[0].latency_ms if pair else None

    def row(name: str, figures: ModelFigures, engine: EngineReport | None, against_control: bool = True) -> ModelRow:
        drop = _drops(report, figures, report.baseline, report.held_to)
        control = _drops(report, figures, report.control if against_control else None)
        time = engine.latency_ms if engine else None
        return ModelRow(name, figures, *drop, *control, time, dense.median / time.median if dense and time else None)

    rows = [ModelRow("dense", report.baseline, latency_ms=dense, speedup=1.0 if dense else None)]
    if report.control is not None:  # same structure as the dense model: timing it again would tell nothing
        rows.append(row("control", report.control, None, against_control=False))
    if report.pruned != report.baseline or any(e.model == "pruned" for e in report.engines):
        pruned = twin(report.engines, pair[1], "pruned", "fp32") if pair else None
        rows.append(row("pruned", report.pruned, pruned))
    rows.append(row("INT8", report.int8, pair[1] if pair else None))
    return tuple(rows)


def conditions(engine: EngineReport) -> str:
    """Under which conditions an engine was timed, in words.

    Examples:
        >>> conditions(EngineReport("openvino", "dense", "fp32", Latency(1, 2), 1, 2, "a CPU", "x.onnx"))
        'openvino, batch 1, 2 threads, a CPU'
    """
    # an engine on an accelerator has no thread count to tell
    threads = f"{engine.threads} thread{'' if engine.threads == 1 else 's'}" if engine.threads > 0 else ""
    return ", ".join(filter(None, (engine.backend, f"batch {engine.batch_size}", threads, engine.device)))
