"""The sentences of a report, shared by console, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence

from hqp_lightning.core.verdict import drop_interval
from hqp_lightning.records import UNIT_KINDS, Report, StepRecord
from hqp_lightning.report.assemble import speed_pair, twin
from hqp_lightning.report.units import change, count, factor, fraction, ms, size

__all__ = [
    "fastest",
    "group_lines",
    "key_figures",
    "other_drops",
    "outcome_words",
    "step_line",
    "steps_summary",
    "unit_counts",
    "unpruned",
    "verdict",
]

OUTCOMES = {"kept": "kept", "rolled_back": "rolled back", "refused": "refused"}


def outcome_words(outcome: str) -> str:
    """``rolled_back`` as people write it."""
    return OUTCOMES.get(outcome, outcome)


def step_line(
    record: StepRecord, *, baseline_macs: float | None = None, max_drop: float | None = None, monitor: str = "accuracy"
) -> str:
    """One line for the progress log about one pruning step.

    Args:
        record: the step and its outcome.
        baseline_macs: MACs of the dense model, to say what share is gone.
        max_drop: the budget, to say how much of it is used.
        monitor: name of the monitored metric.

    Returns:
        One line without a line break; the reason is told for a step that was not kept.

    Examples:
        >>> step_line(StepRecord(7, 3, "kept", "", 0.05, 96, 0.01, 1.22e9, 5_000_000, 0.92411, 0.0056, 0.8),
        ...           baseline_macs=1.82e9, max_drop=0.015, monitor="val_acc")
        'hqp step 7 kept: 1.22 G MACs (-33.0 %), val_acc 0.9241 (drop 0.0056 of 0.0150), 96 channels, surgery 0.8 s'
    """
    parts = [f"{count(record.macs)} MACs"]
    if baseline_macs:
        parts[0] += f" ({change(1 - record.macs / baseline_macs)})"
    parts += [] if record.predicted_ms is None else [f"{record.predicted_ms:.3g} ms predicted"]
    if record.accuracy is None:
        parts.append("not judged")
    else:
        allowed = "" if max_drop is None else f" of {fraction(max_drop)}"
        drop = "" if record.accuracy_drop is None else f" (drop {fraction(record.accuracy_drop)}{allowed})"
        parts.append(f"{monitor} {fraction(record.accuracy)}{drop}")
    parts.append(f"{record.channels_removed} channel{'' if record.channels_removed == 1 else 's'}")
    parts += [text for text in [unit_counts(record.units_removed)] if text]
    parts += [f"in {record.substeps} parts"] if record.substeps > 1 else []
    if record.surgery_s:
        parts.append(f"surgery {record.surgery_s:.1f} s")
    line = f"hqp step {record.index} {outcome_words(record.outcome)}: {', '.join(parts)}"
    if record.outcome != "kept" and record.reason:
        line += f"; {' '.join(record.reason.split())}"
    return line


def unit_counts(keys: Sequence[str]) -> str:
    """How many units of each kind.

    Examples:
        >>> unit_counts(["gate:a", "gate:b", "branch:c"])
        '2 gates, 1 branch'
    """
    kinds = [key.partition(":")[0] for key in keys]
    counts = {plural if kinds.count(kind) != 1 else kind: kinds.count(kind) for plural, kind in UNIT_KINDS.items()}
    return ", ".join(f"{n} {words}" for words, n in counts.items() if n)


def group_lines(report: Report) -> list[str]:
    """The groups that are not like the others: one line for each reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for n in report.group_notes:
        by_reason.setdefault((n.status, n.reason), []).append(f"{n.group} ({count(n.channels)} channels)")
    words = {"left out": "not pruned", "approximate": "pruned approximately"}
    return [f"{words.get(s, s)}: {', '.join(groups)}: {reason}" for (s, reason), groups in by_reason.items()]


def against(report: Report) -> str:
    """What the INT8 score is held against: the dense model's, or a score that a better model had or the user gave."""
    dense = f"{fraction(report.baseline.accuracy)} dense"
    return dense if report.reference is None else f"the baseline {fraction(report.reference)} ({dense})"


def verdict(report: Report) -> str:
    """What was promised and what holds, in one sentence."""
    budget, better = report.budget, " (smaller is better)" if report.budget.mode == "min" else ""
    state = "WITHIN BUDGET" if report.within_budget else "OVER BUDGET"
    return (
        f"{state}: INT8 {budget.monitor}{better} is {fraction(report.int8.accuracy)} against "
        f"{against(report)}, "
        f"a drop of {fraction(report.accuracy_drop)} where {fraction(budget.max_drop)} is allowed"
    )


def other_drops(report: Report) -> tuple[str, ...]:
    """The drop of the INT8 artifact on held-out data and against the control, one sentence each."""
    base, ours = report.baseline, report.int8
    lines = []
    if text := _interval(report, report.held_to, ours.accuracy, report.samples):
        lines.append(f"On the data of the decisions the drop{text}.")
    if report.holdout_accuracy_drop is not None:
        lines.append(
            "On held-out data, which no decision saw, the drop is "
            f"{fraction(report.holdout_accuracy_drop)}"
            f"{_interval(report, base.holdout_accuracy, ours.holdout_accuracy, report.holdout_samples, ' and')}."
        )
        lines.append(_over_both(report))
    if report.control_accuracy_drop is not None:
        held = report.control_holdout_accuracy_drop
        lines.append(
            "Against the control, the dense model trained for the same epochs, the drop is "
            f"{fraction(report.control_accuracy_drop)}{'' if held is None else f', on held-out data {fraction(held)}'}."
        )
    return tuple(filter(None, lines))


def _over_both(report: Report) -> str:
    """The drop over the data of the decisions and the held-out data, by their sizes: the least chance is in that."""
    base, ours, decided, held = report.baseline, report.int8, report.samples, report.holdout_samples
    if base.holdout_accuracy is None or ours.holdout_accuracy is None or not decided or not held:
        return ""
    every = decided + held
    baseline = (decided * base.accuracy + held * base.holdout_accuracy) / every
    measured = (decided * ours.accuracy + held * ours.holdout_accuracy) / every
    if not (interval := _interval(report, baseline, measured, every, " and")):
        return ""
    drops = base.accuracy - ours.accuracy, base.holdout_accuracy - ours.holdout_accuracy
    return (
        f"From the dense model these are drops of {' and '.join(map(fraction, drops))}; over both, by their sizes, the "
        f"drop is {fraction(baseline - measured)}{interval}."
    )


def fastest(report: Report) -> str:
    """The engine to deploy, and INT8's figures where that is another one; empty where no engine was scored."""
    best = report.fastest_within_budget
    if best is None:
        scored = any(e.accuracy is not None for e in report.engines)
        return "No engine that was scored is within the budget." if scored else ""
    rate = "" if best.images_per_s is None else f", {count(best.images_per_s)} images/s"
    line = (
        f"Fastest engine within the budget: {best.model} {best.precision} on {best.backend}, "
        f"{ms(best.latency_ms.median)} ms{rate}, {report.budget.monitor} {fraction(best.accuracy)} ({best.path})."
    )
    int8 = twin(report.engines, best, best.model, "int8")
    if best.precision == "int8" or int8 is None:
        return line
    name = "INT8 with its float parts in float32" if best.precision.startswith("int8") else "INT8"
    state = "slower" if int8.latency_ms.median > best.latency_ms.median else "over the budget"
    return f"{line} {name} is {state} here: {ms(int8.latency_ms.median)} ms, {fraction(int8.accuracy)}."


def _interval(
    report: Report, baseline: float | None, measured: float | None, samples: int | None, join: str = ""
) -> str:
    """The 95 % interval in words; nothing where the metric is no proportion or the number of samples is not known."""
    if baseline is None or measured is None or not samples or report.budget.mode != "max":
        return ""
    if not (0 <= baseline <= 1 and 0 <= measured <= 1):
        return ""
    low, high = drop_interval(baseline, measured, samples)
    return f"{join} lies within {fraction(low)} ... {fraction(high)} with 95 % confidence ({samples:,} images)"


def unpruned(report: Report) -> bool:
    """Whether INT8 is all that was done."""
    return not report.steps and report.baseline.macs == report.int8.macs


def key_figures(report: Report) -> tuple[tuple[str, str, str], ...]:
    """Name, figure and the two values behind it, for what the run was done for."""
    base, ours, pair = report.baseline, report.int8, speed_pair(report.engines)
    behind = "not timed"
    if pair:
        behind = f"{ms(pair[0].latency_ms.median)} to {ms(pair[1].latency_ms.median)} ms, {pair[1].backend}"
    figures = (
        ("speedup", factor(report.speedup), behind),
        ("file size", change(report.size_reduction), f"{size(base.file_bytes)} to {size(ours.file_bytes)}"),
    )
    if unpruned(report):
        return figures
    return (
        *figures,
        ("MACs", change(report.macs_reduction), f"{count(base.macs)} to {count(ours.macs)}"),
        ("parameters", change(1 - ours.params / max(base.params, 1)), f"{count(base.params)} to {count(ours.params)}"),
    )


def steps_summary(report: Report) -> str:
    """How many steps were made and what became of them.

    One line, such as ``14 pruning steps: 10 kept, 3 rolled back, 1 refused``.
    """
    if not report.steps:
        return "no pruning steps"
    outcomes = dict.fromkeys([*OUTCOMES, *(s.outcome for s in report.steps)])
    counts = {o: sum(s.outcome == o for s in report.steps) for o in outcomes}
    parts = ", ".join(f"{n} {outcome_words(o)}" for o, n in counts.items() if n)
    return f"{len(report.steps)} pruning step{'' if len(report.steps) == 1 else 's'}: {parts}"
