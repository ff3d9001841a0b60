"""What went, and what it was predicted to cost: in a step, and as a whole."""

from __future__ import annotations

from hqp_lightning.records import Report, StepRecord
from hqp_lightning.report.sentences import unit_counts

__all__ = ["lost_line", "unit_line"]

SHOWN = 8  # parts of a step in a line; report.json has them all


def lost_line(record: StepRecord) -> str:
    """What went with a step, dearest first, by the scores that chose it.

    Examples:
        >>> step = StepRecord(1, 0, "kept", "", 0.1, 8, 0.03, 1e6, 100, losses={"conv": 0.01, "branch:block": 0.02})
        >>> lost_line(step)
        'predicted rise of the loss, nats: branch block 0.02, conv 0.01'
    """
    dearest = sorted(record.losses.items(), key=lambda item: -item[1])
    parts = [f"{name.replace(':', ' ')} {loss:.2g}" for name, loss in dearest[:SHOWN]]
    parts += [f"{len(dearest) - SHOWN} others {sum(loss for _, loss in dearest[SHOWN:]):.2g}"] * (len(dearest) > SHOWN)
    return f"predicted rise of the loss, nats: {', '.join(parts)}" if parts else ""


def unit_line(report: Report) -> str:
    """What the pruned model is without as a whole, by name and predicted loss; empty where that is nothing."""
    if not report.units_removed:
        return ""
    losses = {n: loss for s in report.steps if s.outcome == "kept" for n, loss in s.losses.items()}
    told = (f"{key}, {losses[key]:.2g} nats" if key in losses else key for key in report.units_removed)
    names = ("; " if losses else ", ").join(text.replace(":", " ") for text in told)
    return f"removed as a whole: {unit_counts(report.units_removed)} ({names})"
