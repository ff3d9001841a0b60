"""What a validation means for the search: a baseline, a verdict on the pending step, or a better accepted model."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch import nn

from hqp_lightning.core.search import advance, finish
from hqp_lightning.core.verdict import judge, score_drop
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.records import Budget, StepRecord
from hqp_lightning.search.state import Accepted, PruningState
from hqp_lightning.surgery import take

__all__ = ["healed", "judge_", "may_step_", "note_"]


def note_(state: PruningState, module: nn.Module, network: nn.Module, score: float, mode: str) -> None:
    """A score without a pending step: keep the weights if they are the best of their structure.

    The dense model's best score is the baseline, unless the user gave one. ``module`` is what was scored.
    """
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
    verdict = judge(_baseline(state), score, budget)
    kept = trainer.strategy.reduce_boolean_decision(verdict.kept)
    if not kept and state.pending is not None:
        epochs = trainer.current_epoch - state.pending.epoch + 1
        if epochs < options.every_n_epochs + options.patience:
            return None
    outcome = "kept" if kept else "rolled_back"
    record = state.close(outcome, verdict.reason, accuracy=score, accuracy_drop=verdict.drop)
    state.rollback_due = not kept
    if kept:
        state.undo, state.rejected = None, []
        accepted = Accepted(record.index, score, record.macs, record.params, take(module))
        state.accepted = [*state.accepted, accepted][-options.max_snapshots :]
    state.search = advance(state.search, kept)
    return record


def healed(trainer: Trainer, pending: StepRecord, every_n_epochs: int) -> bool:
    """Whether a step may be judged: at the end of its last healing epoch, not in the middle."""
    epochs = trainer.current_epoch - pending.epoch + 1
    at_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.check_val_every_n_epoch is None
    return epochs > every_n_epochs or (epochs == every_n_epochs and at_end)


def may_step_(state: PruningState, trainer: Trainer, options: PruningOptions) -> bool:
    """Whether a step may begin now; ends the search where no further one makes sense."""
    epoch, last = trainer.current_epoch, trainer.max_epochs
    if state.search.ended or state.pending or not state.saliency or epoch < options.start_epoch:
        return False
    macs = state.accepted[-1].macs if state.accepted else state.dense_macs
    if options.target_macs is not None and macs <= options.target_macs * state.dense_macs:
        state.search = finish(state.search, f"target_macs={options.target_macs:g} reached")
    elif last not in (None, -1) and epoch + options.every_n_epochs > last:
        state.search = finish(state.search, "no epochs are left to heal and judge another step")
    return state.search.ended is None


def _baseline(state: PruningState) -> float:
    if state.baseline is not None:
        return state.baseline
    if state.dense is None:
        raise RuntimeError("a step was made before the dense model was validated")
    return state.dense.score
