"""What an export asks for before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lightning.pytorch import Trainer

from hqp_lightning.core.verdict import check_budget
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.export.board_files import sweep
from hqp_lightning.loop.options import ExportOptions
from hqp_lightning.records import Budget
from hqp_lightning.shipping.timing import usable_backends

__all__ = ["check_folder", "check_machine", "own_budget", "same_budget"]


def own_budget(monitor: str | None, max_drop: float | None, mode: str) -> Budget:
    """The budget of an export without a pruning.

    Raises:
        ConfigurationError: it is not whole, or out of range.
    """
    if monitor is None or max_drop is None:
        raise ConfigurationError(
            "Int8Export without HQPPruning needs a budget of its own: Int8Export(dirpath, monitor='val_acc', "
            "max_drop=0.01)."
        )
    return check_budget(Budget(max_drop, monitor, mode))


def same_budget(budget: Budget, monitor: str | None, max_drop: float | None, mode: str) -> None:
    """See that an export was not given another budget than the one that holds, which nobody would keep.

    Args:
        budget: that of `HQPPruning`, or of the run that left the folder; else the export's own.
        monitor: what the export was given.
        max_drop: what the export was given.
        mode: what the export was given; ``"max"`` may be the default.

    Raises:
        ConfigurationError: it was.
    """
    asked = {"monitor": monitor, "max_drop": max_drop, "mode": None if mode == "max" else mode}
    for name, own in asked.items():
        if own is not None and own != (holds := getattr(budget, name)):
            raise ConfigurationError(
                f"Int8Export({name}={own!r}) where {name}={holds!r} holds, the budget of HQPPruning or of the run that "
                f"left this folder, to which the INT8 file is held: leave {name} out of Int8Export."
            )


def check_machine(trainer: Trainer, options: ExportOptions) -> None:
    """Refuse what one device alone can do, and engines that were asked for by name if none of them runs here.

    Raises:
        ConfigurationError: a recovery on several devices; or no engine.
    """
    if options.recovery_epochs and trainer.world_size > 1:
        raise ConfigurationError(
            f"recovery_epochs={options.recovery_epochs} trains on one device, and this run has {trainer.world_size}: "
            "use Trainer(devices=1), or leave it at 0."
        )
    if options.engines is not None:  # else onnxruntime, if there is no other
        try:
            usable_backends(options.engines, options.activation_type)
        except ExportError as error:
            raise ConfigurationError(
                f"engines={list(options.engines)}: {error}. One has to score the INT8 file: name another, or leave "
                "engines out, which takes what this machine has."
            ) from error


def check_folder(folder: Path) -> None:
    """Create a folder and try to write there, now and not after the training; parts that killed runs left there go.

    Raises:
        ConfigurationError: it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for inside in (folder, folder / "engines"):
            sweep(inside)
    except OSError as error:
        raise ConfigurationError(
            f"dirpath={str(folder)!r} can't be written: {error}. Choose another folder."
        ) from error
