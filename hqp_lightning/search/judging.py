"""What a validation means for the search: a baseline, a verdict on the pending step, or a better accepted model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from lightning.pytorch import Trainer
from torch import Tensor, nn

from hqp_lightning.core.healing import may_heal
from hqp_lightning.core.search import advance, finish, pause
from hqp_lightning.core.verdict import judge, score_drop
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.records import Budget, StepRecord
from hqp_lightning.search.saving import target_ms
from hqp_lightning.search.state import NO_EPOCHS, Accepted, PruningState
from hqp_lightning.surgery import take

__all__ = ["doubts", "enough", "healed", "judge_", "may_step_", "note_", "still_learning", "weigh_"]

_REACHED = 1 + 1e-6  # sums of milliseconds in another order


def weigh_(
    state: PruningState,
    trainer: Trainer,
    module: nn.Module,
    network: nn.Module,
    score: float,
    budget: Budget,
    options: PruningOptions,
) -> StepRecord | None:
    """What a validation's score means: returns the step that it closed, if it did."""
    if state.pending is None:
        note_(state, module, network, score, budget.mode)
        return None
    state.heals(trainer.current_epoch - state.pending.epoch, score, budget.mode)
    if healed(trainer, state.pending, options.every_n_epochs):
        return judge_(state, trainer, module, score, budget, options)
    return None


def note_(state: PruningState, module: nn.Module, network: nn.Module, score: float, mode: str) -> None:
    """A score without a pending step: keep the weights if they are the best of their structure.

    A score that is not a number says nothing, and keeps nothing. ``module`` is what was scored.
    """
    if not math.isfinite(score):
        return
    state.reached(score, mode)
    best = state.accepted[-1] if state.accepted else state.dense
    if best is not None and score_drop(best.score, score, mode) >= 0:
        return
    index, macs = (best.index, best.macs) if best else (0, state.dense_macs)
    model = Accepted(index, score, macs, sum(p.numel() for p in network.parameters()), take(module))
    if state.accepted:
        state.accepted[-1] = model
    else:
        state.dense = model


def judge_(
    state: PruningState,
    trainer: Trainer,
    module: nn.Module,
    score: float,
    budget: Budget,
    options: PruningOptions,
) -> StepRecord | None:
    """Judge the pending step: keep it, or mark it for rollback, and move the search on; None if it may heal further."""
    if (baseline := state.reference) is None:
        raise RuntimeError("a step was made before the dense model was validated")
    verdict = judge(baseline, score, budget)
    kept = trainer.strategy.reduce_boolean_decision(verdict.kept)
    if not kept and not trainer.strategy.reduce_boolean_decision(_hopeless(state, trainer, baseline, budget, options)):
        return None
    state.first = baseline if state.first is None else state.first
    outcome = "kept" if kept else "rolled_back"
    record = state.close(outcome, verdict.reason, accuracy=score, accuracy_drop=verdict.drop)
    state.rollback_due = not kept
    if not kept:
        state.bar(record)
    if kept:
        state.undo, state.rejected = None, []
        state.reached(score, budget.mode)
        accepted = Accepted(record.index, score, record.macs, record.params, take(module))
        state.accepted = [*state.accepted, accepted][-options.max_snapshots :]
    state.search = advance(state.search, kept)
    return record


def _hopeless(state: PruningState, trainer: Trainer, baseline: float, budget: Budget, options: PruningOptions) -> bool:
    """Whether a step over budget has had its epochs, or its curve says that they would not be enough."""
    if state.pending is None:
        return True
    if not _at_end(trainer):
        return False
    left = state.pending.epoch + options.every_n_epochs + options.patience - trainer.current_epoch - 1
    if left <= 0:
        return True
    if trainer.max_epochs not in (None, -1):
        left = min(left, trainer.max_epochs - trainer.current_epoch - 1)
    drops, epochs = [score_drop(baseline, s, budget.mode) for s in state.healing.values()], list(state.healing)
    between = (epochs[-1] - epochs[0]) / max(1, len(epochs) - 1) or 1.0  # not every epoch need be validated
    window = max(2, round(options.every_n_epochs / between))
    return left > 0 and not may_heal(drops, budget.max_drop, window, left / between)


def healed(trainer: Trainer, pending: StepRecord, every_n_epochs: int) -> bool:
    """Whether a step may be judged: at the end of its last healing epoch, not in the middle."""
    epochs = trainer.current_epoch - pending.epoch + 1
    return epochs > every_n_epochs or (epochs == every_n_epochs and _at_end(trainer))


def _at_end(trainer: Trainer) -> bool:
    """Whether this is an epoch's last validation; where they go by batches, each counts as one."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.check_val_every_n_epoch is None


def may_step_(state: PruningState, trainer: Trainer, options: PruningOptions) -> bool:
    """Whether a step may begin now; ends the search where no further one makes sense."""
    epoch, last = trainer.current_epoch, trainer.max_epochs
    if state.search.stopped or state.pending or epoch < options.start_epoch:
        return False
    if state.dense is None or not any(s.isfinite().any() for s in (state.saliency or {}).values()):
        return False
    if (why := enough(state, options)) is not None:
        state.search = finish(state.search, why)
    elif last not in (None, -1) and epoch + options.every_n_epochs > last:
        state.search = pause(state.search, NO_EPOCHS)
    return state.search.stopped is None


def enough(state: PruningState, options: PruningOptions) -> str | None:
    """Which target the last accepted model reaches, in words, or is predicted to; None if it reaches none."""
    macs = state.accepted[-1].macs if state.accepted else state.dense_macs
    if options.target_macs is not None and macs <= options.target_macs * state.dense_macs:
        return f"target_macs={options.target_macs:g} reached"
    if state.price is None:
        return None
    target, now = target_ms(state.price, options), state.predicted_ms
    if target is None or now is None or now > target * _REACHED:
        return None
    asked = {"target_speedup": options.target_speedup, "target_latency_ms": options.target_latency_ms}
    said = ", ".join(f"{n}={v:g}" for n, v in asked.items() if v is not None)
    return f"{said} reached: {now:.3g} ms predicted"


def doubts(
    state: PruningState, score: float, saliency: Mapping[str, Tensor], budget: Budget
) -> Iterator[tuple[str, str]]:
    """What a user should hear of a validation: its kind, which is told once in a ``fit``, and the line."""
    if not math.isfinite(score):
        yield "score", f"hqp: {budget.monitor} is {score}, not a number that can be judged; nothing is kept on it"
    if saliency and not any(s.isfinite().any() for s in saliency.values()):
        yield "saliency", "hqp: the loss of the validation batches is NaN or infinite; no step is made while it is"
    if (learning := still_learning(state, budget)) is not None:
        yield "learning", f"hqp: {learning}"


def still_learning(state: PruningState, budget: Budget) -> str | None:
    """Why a budget means little where the scores rose far above the first baseline, by more than it; else None."""
    if state.baseline is not None or state.best is None:
        return None
    first = state.first if state.first is not None else state.best
    if -score_drop(first, state.best, budget.mode) <= budget.max_drop:
        return None
    return (
        f"the dense model was still learning: {budget.monitor} was {first:.4f} before the first step and reached "
        f"{state.best:.4f} since. Drops are measured from the best score so far; begin from trained weights, or with a "
        "later start_epoch, so that the first ones mean something"
    )
