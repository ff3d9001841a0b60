"""What the user hears of a step: a line on the console, and figures for the loggers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from hqp_lightning.records import Budget, StepRecord
from hqp_lightning.report import step_line

__all__ = ["announce", "say", "say_once", "show_saliency"]


def announce(trainer: Trainer, record: StepRecord, budget: Budget, dense_macs: float) -> None:
    """One line for a step that was closed, and its figures to the user's loggers."""
    allowed = budget.max_drop if math.isfinite(budget.max_drop) else None
    line = step_line(record, baseline_macs=dense_macs, max_drop=allowed, monitor=budget.monitor)
    say(trainer, line, "green" if record.outcome == "kept" else "yellow")
    values = {
        "hqp/kept": float(record.outcome == "kept"),
        "hqp/macs": record.macs,
        "hqp/params": float(record.params),
        "hqp/accuracy_drop": record.accuracy_drop,
        "hqp/step": record.step,
    }
    for logger in trainer.loggers:
        logger.log_metrics({k: v for k, v in values.items() if v is not None}, step=trainer.global_step)


def say(trainer: Trainer, line: str, style: str = "yellow") -> None:
    """Above the progress bar, which stays whole; in colour where it is Rich's."""
    bar = trainer.progress_bar_callback
    if trainer.is_global_zero and isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
        bar.progress.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    else:
        trainer.lightning_module.print(line)


def say_once(trainer: Trainer, told: set[str], lines: Iterable[tuple[str, str]]) -> None:
    """The lines of a kind that is not in ``told`` yet."""
    for kind, line in lines:
        if kind not in told:
            say(trainer, line)
        told.add(kind)


def show_saliency(trainer: Trainer, saliency: Mapping[str, Tensor]) -> None:
    """A histogram of the saliency of all channels to every TensorBoard logger.

    Of the decimal logarithm, since the values lie orders of magnitude apart; those that are zero are left out.
    """
    values = torch.cat([v.flatten() for v in saliency.values()]).log10()
    values = values[values.isfinite()]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and len(values):
            logger.experiment.add_histogram("hqp/log10_saliency", values, trainer.global_step)
