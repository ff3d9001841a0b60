"""The surgery of one step on a model that a Trainer holds: prune, or undo, as one transaction."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from hqp_lightning.core.calls import Call
from hqp_lightning.core.search import advance, finish
from hqp_lightning.errors import LoaderError, SurgeryError
from hqp_lightning.loop.averaging import averages, copies
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import PruningOptions
from hqp_lightning.loop.ranks import average_batchnorm_
from hqp_lightning.loop.trainer import schedulers
from hqp_lightning.loop.untouched import forget_compiled
from hqp_lightning.records import StepRecord
from hqp_lightning.search.batchnorm import carry_batchnorm_, references
from hqp_lightning.search.compensating import compensations
from hqp_lightning.search.judging import may_step_
from hqp_lightning.search.proposal import untried
from hqp_lightning.search.removing import remove_units_
from hqp_lightning.search.saving import after, wanted
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import (
    Cut,
    Shadow,
    Snapshot,
    apply_cut_,
    restore_,
    slice_optimizers_,
    take,
)
from hqp_lightning.surgery.compensation import add_
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
                state.search = finish(state.search, "no group may lose another tile of channels")
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
    started = time.perf_counter()
    _, network = find_network(pl_module, options.module)
    shadow = Shadow(network, example, options.ignore)
    state.note(shadow.notes)
    step = trainer.strategy.broadcast(untried(shadow, wanted(shadow, state, options), state, options))
    if not step.parts:
        return None
    planned = StepRecord(
        index=state.search.index,
        epoch=trainer.current_epoch,
        outcome="pending",
        reason="",
        step=state.search.step,
        channels_removed=step.channels,
        predicted_loss_increase=step.predicted_loss_increase,
        macs=shadow.macs - step.macs_saved,
        params=shadow.params,
        units_removed=step.units,
        predicted_ms=after(shadow, step, state),
    )
    state.pending = planned
    state.rejected.append(step.parts)  # until it is kept
    try:
        cut = shadow.without(step.units).cut(step.removed)
        undo, finished, batchnorm = _operate(trainer, pl_module, cut, options, example, twins)
    except SurgeryError:
        raise
    except BaseException:  # also an interrupt: what is saved on the way out must be whole
        state.pending = None
        state.rejected.pop()
        raise
    state.undo = undo
    state.pending = replace(
        planned, macs=cut.macs, params=cut.params, surgery_s=finished - started, batchnorm=batchnorm
    )
    return state.pending


def _operate(
    trainer: Trainer,
    pl_module: LightningModule,
    cut: Cut,
    options: PruningOptions,
    example: Call,
    twins: Collection[str],
) -> tuple[Snapshot, float, str]:
    """Apply a cut to all that lives, on every rank or on none.

    Returns what undoes it, when it was done, and what became of BatchNorm.
    """
    undo, failure, finished, batchnorm = take(*_everything(trainer, pl_module)), None, 0.0, ""
    # Averaged copies lose the same channels; their old BatchNorm statistics would fit as little as the network's.
    modules = (pl_module, *copies(trainer))
    networks = [find_network(m, options.module)[1] for m in modules] + [
        m.get_submodule(n)
        for m in modules
        for n in sorted(twins)  # one order on all ranks: sets have none
    ]
    with rewrapped(trainer.strategy, pl_module):
        forget_compiled()
        try:
            before = references(networks, options)
            remove_units_(trainer, pl_module, networks, cut, options, example)
            gained = compensations(trainer, pl_module, networks, cut, options, example)  # they still read all
            for network, gain in zip(networks, gained, strict=True):
                apply_cut_(network, cut)
                add_(network, gain)
                slice_optimizers_(trainer.optimizers, network, cut)
            finished = time.perf_counter()
            batchnorm = carry_batchnorm_(trainer, pl_module, networks, before, cut, options, example)
        except Exception as error:
            failure = error
        except BaseException:
            restore_(undo, *_everything(trainer, pl_module))
            raise
        done = trainer.strategy.reduce_boolean_decision(failure is None)
        if done:
            for network in networks:
                average_batchnorm_(trainer, network)
        else:
            restore_(undo, *_everything(trainer, pl_module))
    if not done:
        raise SurgeryError(f"the surgery failed and was taken back: {failure or 'on another rank'}") from failure
    return undo, finished, batchnorm


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
