"""Settings to begin with, each with the reason: what validation can see, what one cut may cost, how long it heals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hqp_lightning.records import Advice, Budget, Look, LookPoint

__all__ = ["STEP_NATS", "advice"]

STEP_NATS = 0.02
"""Foretold rise of the loss that one step may bring; the published runs began with 0.017 (``docs/look.md``)."""

HEALING_BATCHES = 360
"""Of training after a step: those of the published runs."""

_STEPS = (0.05, 0.2)  # a smaller one saves too little for its epochs, a larger one is judged once and for all
_EPOCHS = 3
_GRID, _START = 0.005, 0.01


def advice(look: Look, budget: Budget | None, available: int | None, batches: int | None) -> tuple[Advice, ...]:
    """``step``, ``max_drop`` and ``every_n_epochs``.

    Args:
        look: the figures.
        budget: the user's, if there is one: it names the metric.
        available: samples of all of the validation data, if they can be counted.
        batches: batches of a training epoch, likewise.
    """
    return (_step(look), _max_drop(look, budget, available), _every_n_epochs(batches))


def _step(look: Look) -> Advice:
    low, high = _STEPS
    fits = [p for p in look.channels if p.predicted_loss_increase <= STEP_NATS and _size(p, look) <= high + 0.02]
    if not fits:
        return Advice("step", low, f"even the smallest cut is foretold to cost more than {STEP_NATS:g} nats")
    best = max(fits, key=lambda p: _size(p, look))
    value = min(max(round(_size(best, look) / 0.05) * 0.05, low), high)
    return Advice(
        "step",
        round(value, 2),
        f"the largest of {low:g} to {high:g} that is foretold to cost at most {STEP_NATS:g} nats: "
        f"{best.predicted_loss_increase:.2g}",
    )


def _size(point: LookPoint, look: Look) -> float:
    """What ``step`` counts: the fraction of the dense MACs that goes, or of the milliseconds, if these are the cost."""
    if look.latency_ms is None or point.latency_ms is None:
        return point.macs_removed
    return 1 - point.latency_ms / look.latency_ms


def _max_drop(look: Look, budget: Budget | None, available: int | None) -> Advice:
    name, score = _score(look.metrics, budget)
    count = available or look.samples
    if score is None:
        return Advice("max_drop", _START, "a start: validation logged no accuracy by which to say what it can see")
    error = 2 * math.sqrt(score * (1 - score) / count)
    value = max(math.ceil(error / _GRID - 1e-9) * _GRID, _GRID)
    return Advice(
        "max_drop",
        round(value, 4),
        f"validation can't see less: twice the standard error of {name} {score:.3f} over {count:,} samples is "
        f"{error:.4f}",
    )


def _score(metrics: Mapping[str, float], budget: Budget | None) -> tuple[str, float | None]:
    named = [budget.monitor] if budget is not None else [n for n in metrics if "acc" in n.lower()]
    found = list(_proportions(metrics, named))
    return found[0] if found else ("", None)


def _proportions(metrics: Mapping[str, float], names: list[str]) -> Iterator[tuple[str, float]]:
    yield from ((n, metrics[n]) for n in names if n in metrics and 0 < metrics[n] < 1)


def _every_n_epochs(batches: int | None) -> Advice:
    if not batches:
        return Advice("every_n_epochs", 1, "the length of a training epoch is not known; more healing is safer")
    value = min(max(math.ceil(HEALING_BATCHES / batches), 1), _EPOCHS)
    reason = f"an epoch has {batches:,} batches; a step of the published runs healed for {HEALING_BATCHES}"
    return Advice("every_n_epochs", value, reason)
