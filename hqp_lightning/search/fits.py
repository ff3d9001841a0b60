"""Where a ``fit`` begins and where it ends: a search goes on over several of them."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from lightning.pytorch import LightningModule, Trainer

from hqp_lightning.core.search import Search, pause, resume
from hqp_lightning.core.verdict import judge
from hqp_lightning.loop.averaging import scored
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.loop.untouched import forget_compiled
from hqp_lightning.records import Budget, StepRecord
from hqp_lightning.search.judging import enough
from hqp_lightning.search.operation import undo_
from hqp_lightning.search.state import FIT_ENDED, Accepted, PruningState
from hqp_lightning.surgery import record, restore_, take
from hqp_lightning.surgery.strategy import rewrapped

__all__ = ["begun", "enter_", "leave_", "opened"]

_log = logging.getLogger(__name__)


def opened(options: PruningOptions) -> PruningState:
    """The state of a search that has not begun."""
    return PruningState(Search(options.step, options.min_step), options.baseline)


def begun(
    state: PruningState, options: PruningOptions, pl_module: LightningModule, last: LightningModule | None
) -> PruningState:
    """What a ``fit`` begins with: this state, unless it is of another module; that of a checkpoint is loaded later.

    ``last`` is the module of the fit before. A copy of the callback does not know it, and asks what the module holds.
    """
    models = [a.snapshot for a in (*state.accepted, state.dense) if a is not None]
    mine = any(m.is_of(pl_module) for m in models) if last is None and state.left else last in (None, pl_module)
    return state if mine else opened(options)


def enter_(trainer: Trainer, pl_module: LightningModule, state: PruningState) -> str | None:
    """When training begins: what an earlier ``fit`` left goes on, from its last accepted model.

    That one is put in place where the module holds another structure: an export may have walked back to an earlier one.

    Returns:
        What the user should know, in a line.
    """
    left, last = state.left, _last(state)
    state.search, state.left = resume(state.search), False
    if state.pending is not None and state.pending.epoch > trainer.current_epoch:  # an interrupted fit, begun anew
        state.pending = replace(state.pending, epoch=trainer.current_epoch)
    if not left or last is None:
        return None
    if record(pl_module) != last.snapshot.structure:
        with rewrapped(trainer.strategy, pl_module):
            forget_compiled()
            for model in {pl_module, scored(trainer, pl_module)}:
                restore_(last.snapshot, model)
    if state.search.ended is not None:
        return f"hqp: the search is over ({state.search.ended}); this fit trains the last accepted model"
    at = f"step {last.index}" if last.index else "the dense model"
    return f"hqp: the search goes on from {at}, {last.macs / state.dense_macs:.0%} of the dense MACs"


def leave_(
    trainer: Trainer, pl_module: LightningModule, state: PruningState, budget: Budget, options: PruningOptions
) -> StepRecord | None:
    """When training ends: undo what was not kept, put the last accepted model in place; returns what was pending."""
    unjudged = None
    if state.pending is not None:
        unjudged = _close(state, budget, options)
        state.rollback_due = True
    if state.rollback_due:
        undo_(trainer, pl_module, state)
    judged = scored(trainer, pl_module)
    if state.accepted or judged is not pl_module:
        last = state.accepted[-1].snapshot if state.accepted else take(judged)
        for model in {pl_module, judged}:  # an averaging callback may yet copy the one to the other
            restore_(last, model)
    state.search, state.left = pause(state.search, FIT_ENDED), True
    _log.info("hqp: search ended (%s)", state.search.stopped)
    state.missed = _missed(state, options, trainer.current_epoch)
    if state.missed is not None and trainer.is_global_zero:
        _log.warning("hqp: %s", state.missed)
    return unjudged


def _missed(state: PruningState, options: PruningOptions, epochs: int) -> str | None:
    """What was asked for, in a line, where the training, or the search, ended before it was reached."""
    ended = state.search.ended
    if options.compares:
        return None
    if ended is None and not state.records and options.start_epoch >= epochs:
        return f"nothing was pruned: the training ended after {epochs} epochs, and start_epoch={options.start_epoch}"
    names = ("target_macs", "target_speedup", "target_latency_ms")
    asked = ", ".join(f"{n}={getattr(options, n):g}" for n in names if getattr(options, n) is not None)
    if not asked or enough(state, options) is not None:
        return None
    kept = f"({sum(r.outcome == 'kept' for r in state.records)} of {len(state.records)} steps kept)"
    if ended is not None:
        return f"the search ended before {asked} was reached {kept}: {ended}"
    return (
        f"the training ended after {epochs} epochs, before {asked} was reached {kept}: more epochs, a larger step or a "
        "smaller every_n_epochs get further"
    )


def _close(state: PruningState, budget: Budget, options: PruningOptions) -> StepRecord:
    """A step that ``fit`` ends: nobody judged it, or it was over budget and might have healed."""
    epoch, score = [*state.healing.items()][-1] if state.healing else (0, None)
    if score is not None and state.reference is not None and epoch + 1 >= options.every_n_epochs:
        verdict = judge(state.reference, score, budget)
        if not verdict.kept and math.isfinite(score):
            why = f"{verdict.reason}; fit ended while it healed"
            return state.close("rolled_back", why, accuracy=score, accuracy_drop=verdict.drop)
    return state.close("rolled_back", "fit ended before a validation could judge it")


def _last(state: PruningState) -> Accepted | None:
    return state.accepted[-1] if state.accepted else state.dense
