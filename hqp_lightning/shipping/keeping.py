"""What an export leaves behind whatever happens to it: the pruned model, the search, and how to go on from them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.records import Budget
from hqp_lightning.report import versions, write_failure
from hqp_lightning.search.state import PruningState
from hqp_lightning.surgery import restore_, take

__all__ = ["PRUNED", "WALKED_BACK", "kept", "kept_search", "reason_of", "save_pruned", "save_search"]

PRUNED, SEARCH, WALKED_BACK = "pruned.ckpt", "search.ckpt", "walked_back.ckpt"
_log = logging.getLogger(__name__)


@contextmanager
def kept(
    trainer: Trainer, pl_module: LightningModule, dirpath: Path, budget: Budget, search: PruningState | None, later: str
) -> Iterator[None]:
    """What may fail goes inside; before it the model is written, and what the search knows. Entered on every rank.

    After a failure the module holds what it held, and the report says why and how the export is made later.

    Args:
        trainer: the trainer of the run.
        pl_module: the model that the training ended with.
        dirpath: the folder of the export.
        budget: what the run is held to.
        search: of the pruning, if there was one.
        later: the Python that makes the export from what is written here.
    """
    save_pruned(trainer, dirpath)
    before, first = take(pl_module), trainer.is_global_zero
    try:
        if first:
            (dirpath / WALKED_BACK).unlink(missing_ok=True)  # of an earlier run
            save_search(dirpath, budget, search)
        yield
    except BaseException as error:
        restore_(before, pl_module)
        if first:
            _tell(dirpath, reason_of(error), later, budget, search)
        raise
    if first:
        (dirpath / SEARCH).unlink(missing_ok=True)


def save_pruned(trainer: Trainer, dirpath: Path, alone: bool = False, name: str = PRUNED) -> None:
    """Write the model as ``name``, whole or not at all; every rank calls it, or the first one ``alone``.

    Lightning writes into the system's temporary folder and moves the file, which copies it where that is another disk.
    """
    part = dirpath / f".{name}.part"
    try:
        if alone:  # the same without a barrier at the end
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(weights_only=True), part)
        else:
            trainer.save_checkpoint(part, weights_only=True)
        if trainer.is_global_zero:
            os.replace(part, dirpath / name)
    except OSError as error:
        raise ExportError(f"cannot write {dirpath / name}: {error}") from error
    finally:
        if trainer.is_global_zero:
            part.unlink(missing_ok=True)


def kept_search(dirpath: Path, model: LightningModule) -> tuple[Budget, PruningState | None] | None:
    """The budget and the search of a run whose export failed here; None: there is none.

    Raises:
        ConfigurationError: the model is not the one that this run ended with.
    """
    path = dirpath / SEARCH
    if not path.is_file():
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    budget, search = Budget(**content["budget"]), content["search"] and PruningState.from_plain(content["search"])
    if search is not None and search.accepted and not search.accepted[-1].snapshot.is_of(model):
        raise ConfigurationError(
            f"{path} is of another model than the one given: load it with load_pruned(..., {dirpath / PRUNED}), or "
            "export yours into another folder, with a monitor and a max_drop of its own."
        )
    return budget, search


def save_search(dirpath: Path, budget: Budget, search: PruningState | None) -> None:
    """Write what `kept_search` reads, whole or not at all."""
    part = dirpath / f".{SEARCH}.part"
    try:
        torch.save({"budget": asdict(budget), "search": search and search.to_plain()}, part)
        os.replace(part, dirpath / SEARCH)
    except (OSError, RuntimeError) as error:  # torch raises the latter where a disk is full
        raise ExportError(f"cannot write {dirpath / SEARCH}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def reason_of(error: BaseException) -> str:
    """An error in words."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):  # Lightning raises one of the latter after a SIGTERM
        return f"the process was stopped ({type(error).__name__})"
    return f"{type(error).__name__}: {error}"


def _tell(dirpath: Path, reason: str, later: str, budget: Budget, search: PruningState | None) -> None:
    _log.error(
        "hqp: the export failed: %s. The pruned model is in %s. Make the export later, without training:\n%s",
        *(reason, dirpath / PRUNED, later),
    )
    try:
        write_failure(dirpath, reason, later, budget, search.records if search else (), versions())
    except ExportError as error:  # a full disk may be what failed: the first error is the one to be raised
        _log.error("hqp: %s", error)
