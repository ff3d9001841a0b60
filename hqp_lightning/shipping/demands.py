"""What an export asks for before anything is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lightning.pytorch import Trainer

from hqp_lightning.core.verdict import check_budget
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export.board_files import sweep
from hqp_lightning.records import Budget

__all__ = ["check_devices", "check_folder", "own_budget"]


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


def check_devices(trainer: Trainer, recovery_epochs: int) -> None:
    """Refuse what one device alone can do.

    Raises:
        ConfigurationError: a recovery on several.
    """
    if recovery_epochs and trainer.world_size > 1:
        raise ConfigurationError(
            f"recovery_epochs={recovery_epochs} trains on one device, and this run has {trainer.world_size}: use "
            "Trainer(devices=1), or leave it at 0."
        )


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
