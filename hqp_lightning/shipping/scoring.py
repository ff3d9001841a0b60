"""Score a model by the user's own validation loop."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler
from torchmetrics import Metric

from hqp_lightning.loop.trainer import loose, monitored
from hqp_lightning.loop.untouched import eager, fixed_seed
from hqp_lightning.shipping.second import as_in_fit, second_trainer

__all__ = ["holdout_loaders", "lent", "score", "with_hooks"]


def score(trainer: Trainer, pl_module: LightningModule, loaders: Any, monitor: str) -> float:
    """The monitored metric of ``pl_module`` over ``loaders``: its ``validation_step``, its hooks, its metrics.

    A second Trainer runs the loop, so that the callbacks, loggers and checkpoints of the first see nothing of it. In a
    distributed run it may be called on one rank alone: it scores all of the data there, and waits for nobody.

    Args:
        trainer: the trainer of the run; its validation limit and accelerator are used.
        pl_module: the model; it is attached to ``trainer`` again afterwards.
        loaders: validation loaders, in any form that ``Trainer.validate`` takes.
        monitor: name of the metric.
    """
    # Mixed precision is of the training; in "bf16-true" and "64-true" the weights themselves are of that type.
    precision = trainer.precision if str(trainer.precision).endswith("-true") else "32-true"
    limits = {"limit_val_batches": trainer.limit_val_batches, "max_epochs": trainer.max_epochs}
    second = second_trainer(trainer, precision=precision, **limits)
    with lent(pl_module), _alone(pl_module), eager(), as_in_fit(second, trainer):
        second.validate(pl_module, **with_hooks(trainer, "val_dataloader", _whole(loaders)), verbose=False)
    return monitored(second, monitor)


def with_hooks(trainer: Trainer, name: str, loaders: Any) -> dict[str, Any]:
    """Loaders as arguments for a second Trainer, with the batch hooks of the run's datamodule.

    Args:
        trainer: the trainer of the run; its datamodule is not set up again.
        name: ``"train_dataloader"`` or ``"val_dataloader"``.
        loaders: what the second Trainer is to run.
    """
    data = loose(trainer).datamodule
    if data is None:
        return {{"train_dataloader": "train_dataloaders", "val_dataloader": "dataloaders"}[name]: loaders}
    data = copy.copy(data)
    data.setup = data.teardown = lambda *_, **__: None
    data.prepare_data = _unprepared(LightningDataModule, data)
    setattr(data, name, lambda: loaders)
    return {"datamodule": data}


@contextmanager
def lent(pl_module: LightningModule, seed: int | None = None) -> Iterator[None]:
    """Inside, a second Trainer may take the model; afterwards it is attached, placed and set as it was."""
    attached, training, device = pl_module._trainer, {m: m.training for m in pl_module.modules()}, pl_module.device
    own = {k: v for k, v in vars(pl_module).items() if k == "prepare_data"}
    vars(pl_module)["prepare_data"] = _unprepared(LightningModule, pl_module)
    try:
        with _quiet(), fixed_seed(seed):
            yield
    finally:
        del vars(pl_module)["prepare_data"]
        vars(pl_module).update(own)
        pl_module._trainer = attached
        pl_module.to(device)
        for module, mode in training.items():
            module.training = mode


def _unprepared(kind: type[LightningModule] | type[LightningDataModule], owner: Any) -> Any:
    """Lightning's own, which does nothing: what overrides it waits for the other ranks, which are not scoring."""
    return MethodType(kind.prepare_data, owner)


def holdout_loaders(trainer: Trainer, holdout: Any) -> Any:
    """The loaders of data that no decision saw: ``"test"`` asks the datamodule, anything else is returned as it is."""
    if holdout != "test":
        return holdout
    data = loose(trainer).datamodule
    if data is None:
        return trainer.lightning_module.test_dataloader()
    data.setup("test")
    return data.test_dataloader()


@contextmanager
def _alone(pl_module: LightningModule) -> Iterator[None]:
    """Inside, torchmetrics do not look for other processes, which are not scoring."""
    asked = {m: m.distributed_available_fn for m in pl_module.modules() if isinstance(m, Metric)}
    for metric in asked:
        metric.distributed_available_fn = lambda: False
    try:
        yield
    finally:
        for metric, function in asked.items():
            metric.distributed_available_fn = function


def _whole(loaders: Any) -> Any:
    """The loaders without the sampler that gives every rank its share."""
    return apply_to_collection(loaders, DataLoader, _undistributed)


def _undistributed(loader: DataLoader) -> DataLoader:
    share, data = loader.sampler, cast(Any, loader.dataset)
    if not isinstance(share, DistributedSampler):
        return loader
    # Lightning's wrapper has the user's own sampler inside.
    inner = isinstance(share, DistributedSamplerWrapper)
    order = cast(Any, share.dataset)._sampler if inner else SequentialSampler(data)
    return DataLoader(
        data,
        batch_size=None if loader.batch_sampler is None else loader.batch_size or 1,
        sampler=order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [
        logging.getLogger(n) for n in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
