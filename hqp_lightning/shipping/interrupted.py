"""What a run leaves that is broken off while it trains: the last accepted model, and how to go on from it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from hqp_lightning.core.search import pause
from hqp_lightning.loop.averaging import scored
from hqp_lightning.records import Budget
from hqp_lightning.report import versions, write_failure
from hqp_lightning.search.state import FIT_ENDED, Accepted, PruningState
from hqp_lightning.shipping.keeping import PRUNED, reason_of, save_pruned, save_search
from hqp_lightning.surgery import restore_, take

__all__ = ["keep_accepted"]

_log = logging.getLogger(__name__)


def keep_accepted(
    trainer: Trainer,
    pl_module: LightningModule,
    dirpath: Path,
    budget: Budget,
    search: PruningState,
    error: BaseException,
    later: Callable[[], str] | None = None,
) -> None:
    """Write the last accepted model of a search that an error or a signal ends, and tell it in a line.

    Nothing is written where no step was accepted, or where ``fit`` has come to its end. The module holds afterwards
    what it held: whoever saves it next saves the training as it stands. Never raises: the error that ended the run is
    the one to be seen. On the first rank alone, which waits for nobody: the others may not have heard of it.

    Args:
        trainer: of the run, in ``on_exception``.
        pl_module: as the training left it.
        dirpath: gets ``pruned.ckpt``; with ``later`` also the search and a report.
        budget: what the run is held to.
        search: as it stands.
        error: what ended it.
        later: gives the Python that exports what is written here.
    """
    last = search.accepted[-1] if search.accepted else None
    if last is None or search.left or trainer.state.fn != "fit" or not trainer.is_global_zero:
        return
    ended = f"the training ended in epoch {trainer.current_epoch}: {' '.join(reason_of(error).split())}"
    before = [(m, take(m)) for m in dict.fromkeys((pl_module, scored(trainer, pl_module)))]
    try:
        dirpath.mkdir(parents=True, exist_ok=True)
        for module, _ in before:
            restore_(last.snapshot, module)
        save_pruned(trainer, dirpath, alone=True)
        if later is not None:
            left = _left(search)
            save_search(dirpath, budget, left)
            write_failure(dirpath, ended, later(), budget, left.records, versions())
    except Exception as failure:
        _log.error("hqp: %s. The last accepted model could not be written: %s", ended, failure)
    else:
        _log.error("hqp: %s. %s", ended, _how_to_go_on(trainer, dirpath, budget, search, last, later is not None))
    finally:
        for module, state in before:
            restore_(state, module)


def _left(search: PruningState) -> PruningState:
    """A copy of the search as the end of a ``fit`` leaves it; the search itself may yet be saved as it stands."""
    left = replace(search, records=[*search.records], undo=None, rollback_due=False)
    if left.pending is not None:
        left.close("rolled_back", "the training ended before a validation could judge it")
    left.search, left.left = pause(left.search, FIT_ENDED), True
    return left


def _how_to_go_on(
    trainer: Trainer, dirpath: Path, budget: Budget, search: PruningState, last: Accepted, reported: bool
) -> str:
    checkpoint: Any = trainer.checkpoint_callback
    newest = checkpoint and (checkpoint.last_model_path or checkpoint.best_model_path)
    training = f"fit(..., ckpt_path={newest!r})" if newest else "fit on what load_pruned gives of it"
    code = f"; to export it without training: the code in {dirpath / 'report.json'}" if reported else ""
    model = f"step {last.index} with {budget.monitor} {last.score:.4f}, {last.macs / search.dense_macs:.0%} of the MACs"
    return f"The last accepted model ({model}) is in {dirpath / PRUNED}. To train on: {training}{code}."
