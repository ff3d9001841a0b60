"""Averaged copies of the weights (EMA), which Lightning's WeightAveraging callbacks keep beside the live module."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import nn

from hqp_lightning.loop.trainer import loose

__all__ = ["averages", "copies", "scored"]

# Lightning has it since 2.6.
_FAMILY: tuple[Any, ...] = tuple(c for c in [getattr(callbacks, "WeightAveraging", None)] if c is not None)


def averages(trainer: Trainer) -> list[nn.Module]:
    """The ``torch.optim.swa_utils.AveragedModel`` of every such callback; its ``module`` is the copy."""
    kept = [getattr(c, "_average_model", None) for c in loose(trainer).callbacks if isinstance(c, _FAMILY)]
    return [average for average in kept if average is not None]


def copies(trainer: Trainer) -> list[Any]:
    """The averaged copies themselves: LightningModules of the live one's structure."""
    return [average.get_submodule("module") for average in averages(trainer)]


def scored(trainer: Trainer, pl_module: LightningModule) -> LightningModule:
    """What validation scores: the averaged copy, which is swapped in for its time, or else the module itself."""
    return next(iter(copies(trainer)), pl_module)
