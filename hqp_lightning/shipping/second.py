"""A second Trainer that runs a user's loop once more: the callbacks, loggers and checkpoints of the first see nothing.

What the user's hooks find at their trainer is there all the same: its optimizers and schedules, how far training has
come, a logger to write to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from hqp_lightning.loop.trainer import loose, schedules_kept
from hqp_lightning.loop.untouched import mute

__all__ = ["as_in_fit", "second_trainer"]


def second_trainer(trainer: Trainer, **settings: Any) -> Trainer:
    """A quiet Trainer without callbacks, for the device of this process in the first one; its loggers write nothing."""
    root = trainer.strategy.root_device
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        accelerator=root.type if root.type in ("cpu", "cuda", "mps") else "auto",
        devices=[root.index] if root.type == "cuda" and root.index is not None else 1,  # 1 alone would be the first GPU
        plugins=[LightningEnvironment()],  # not the cluster's, which expects as many devices as were started
        **{**quiet, "logger": mute(trainer) or False, **settings},
    )


@contextmanager
def as_in_fit(second: Trainer, trainer: Trainer) -> Iterator[None]:
    """Inside, hooks of a validation find at ``second`` what they find at ``trainer``; what they step is put back."""
    at, of = loose(second).fit_loop, loose(trainer).fit_loop
    at.epoch_progress.current.completed = trainer.current_epoch
    for loop in ("automatic_optimization", "manual_optimization"):
        setattr(at.epoch_loop, loop, copy.copy(getattr(of.epoch_loop, loop)))
    second.strategy.optimizers = trainer.strategy.optimizers
    second.strategy.lr_scheduler_configs = trainer.strategy.lr_scheduler_configs
    with schedules_kept(trainer):
        yield
