"""The surgery of one step on a model that a Trainer holds: prune, or undo, as one transaction."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from hqp_lightning.core.calls import Call
from hqp_lightning.core.search import advance, finish
from hqp_lightning.errors import LoaderError, SurgeryError
from hqp_lightning.loop.averaging import averages
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.loop.trainer import schedulers
from hqp_lightning.loop.untouched import forget_compiled
from hqp_lightning.records import StepRecord
from hqp_lightning.search.cutting import cut_
from hqp_lightning.search.judging import may_step_
from hqp_lightning.search.outline import gone, outline_of
from hqp_lightning.search.saving import after
from hqp_lightning.search.state import PruningState
from hqp_lightning.search.substeps import Substep, outside, substeps
from hqp_lightning.surgery import Snapshot, restore_, take
from hqp_lightning.surgery.strategy import rewrapped

__all__ = ["prune_", "steps_", "undo_"]


def steps_(
    trainer: Trainer,
    pl_module: LightningModule,
    state: PruningState,
    options: PruningOptions,
    example: Call,
    twins: Collection[str] = (),
) -> Iterator[StepRecord]:
    """Make the next step if one is due, and leave it pending; gives those that had to be refused on the way.

    The search ends where nothing may be removed any more; after a refusal it goes on with half the step. A step that
    only lacked its batches is tried as it was, in the next epoch.
    """
    while may_step_(state, trainer, options):
        try:
            if prune_(trainer, pl_module, state, options, example, twins) is None:
                why = " that was not rolled back before" if state.rolled_back else ""
                state.search = finish(state.search, f"no group may lose another tile of channels{why}")
            return
        except SurgeryError as error:
            anew = not trainer.strategy.reduce_boolean_decision(not _of_a_loader(error))
            state.search = advance(state.search, kept=anew)
            if anew:
                state.rejected.pop()
            yield state.close("refused", str(error))
            if anew:
                return


def _of_a_loader(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, LoaderError) or _of_a_loader(error.__cause__))


def prune_(
    trainer: Trainer,
    pl_module: LightningModule,
    state: PruningState,
    options: PruningOptions,
    example: Call,
    twins: Collection[str] = (),
) -> StepRecord | None:
    """Propose and make one step; the record is left pending in the state. None if nothing may be removed.

    ``twins`` are names of modules that lose the same channels, see `hqp_lightning.loop.twins.Twins`.

    Raises:
        SurgeryError: the step would break the model; the model is as it was, the step is left pending to be closed.
    """
    started, parts = time.perf_counter(), substeps(trainer, pl_module, state, options, example)
    state.rejected.append({})  # what goes, until it is kept
    state.pending = _begun(trainer, state)
    try:
        first = next(parts, None)
        if first is None:
            state.pending = None
            state.rejected.pop()
            return None
        every = chain([first], parts)
        state.undo, made, finished = _operate(trainer, pl_module, state, state.pending, every, options, example, twins)
    except SurgeryError:
        raise
    except BaseException:  # also an interrupt: what is saved on the way out must be whole
        state.pending = None
        state.rejected.pop()
        raise
    state.pending = replace(made, surgery_s=finished - started)
    return state.pending


def _begun(trainer: Trainer, state: PruningState) -> StepRecord:
    """A step of which nothing has been proposed yet."""
    last = state.accepted[-1] if state.accepted else state.dense
    macs, params = (state.dense_macs, 0) if last is None else (last.macs, last.params)
    at, step = (state.search.index, trainer.current_epoch), state.search.step
    return StepRecord(*at, "pending", "", step, 0, 0.0, macs, params, substeps=0)


def _operate(
    trainer: Trainer,
    pl_module: LightningModule,
    state: PruningState,
    made: StepRecord,
    parts: Iterable[Substep],
    options: PruningOptions,
    example: Call,
    twins: Collection[str],
) -> tuple[Snapshot, StepRecord, float]:
    """Make the parts of a step, on every rank or on none; the state's pending step, ``made``, grows with them.

    Returns what undoes all of them, their record, and when they were done.
    """
    undo, refused, finished = take(*_everything(trainer, pl_module)), None, 0.0
    with rewrapped(trainer.strategy, pl_module):
        forget_compiled()
        try:
            for substep in parts:
                made = state.pending = _with(made, substep, state)
                state.rejected[-1] = substep.whole
                less = substep.shadow.without(substep.part.units)
                state.outline = outline_of(less, substep.part.removed, {*gone(state.records), *made.units_removed})
                cut = less.cut(substep.part.removed)
                finished, batchnorm = cut_(trainer, pl_module, cut, options, example, twins)
                made = state.pending = replace(made, macs=cut.macs, params=cut.params, batchnorm=batchnorm)
        except SurgeryError as error:
            refused = error
            restore_(undo, *_everything(trainer, pl_module))
        except BaseException:
            restore_(undo, *_everything(trainer, pl_module))
            raise
    if refused is not None:
        raise refused
    return undo, made, finished


def _with(made: StepRecord, substep: Substep, state: PruningState) -> StepRecord:
    """A step with a further part, which is proposed and not made yet."""
    part = substep.part
    return replace(
        made,
        channels_removed=made.channels_removed + part.channels,
        predicted_loss_increase=made.predicted_loss_increase + part.predicted_loss_increase,
        macs=substep.shadow.macs - part.macs_saved,
        params=substep.shadow.params,
        units_removed=(*outside(made.units_removed, part.units), *part.units),
        substeps=made.substeps + 1,
        predicted_ms=after(substep.shadow, part, state),
        losses={n: made.losses.get(n, 0.0) + substep.losses.get(n, 0.0) for n in (*made.losses, *substep.losses)},
    )


def _everything(trainer: Trainer, pl_module: LightningModule) -> tuple[Any, ...]:
    """What a step changes, in the order of the arguments of `take` and `restore_`."""
    return pl_module, trainer.optimizers, schedulers(trainer), averages(trainer)


def undo_(trainer: Trainer, pl_module: LightningModule, state: PruningState) -> None:
    """Take the rejected step back: structure, weights, buffers, optimizer, scheduler and averages."""
    if state.undo is not None:
        with rewrapped(trainer.strategy, pl_module):
            forget_compiled()
            restore_(state.undo, *_everything(trainer, pl_module))
    state.undo, state.rollback_due = None, False
