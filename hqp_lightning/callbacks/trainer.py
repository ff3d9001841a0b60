"""What the callbacks ask of a Trainer: preconditions, a batch, a metric, an extra validation."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, XLAStrategy
from torch import Tensor, nn

from hqp_lightning.callbacks.network import LossFn, network_inputs
from hqp_lightning.callbacks.ranks import mean_score
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget, StepRecord
from hqp_lightning.report import step_line

__all__ = [
    "announce",
    "batches",
    "check_trainer",
    "fixed_seed",
    "load_validation",
    "loose",
    "monitored",
    "schedulers",
    "show_saliency",
    "validate_now",
]

_NEIGHBOURS_REFUSED = ("StochasticWeightAveraging", "ModelPruning")


def loose(trainer: Trainer) -> Any:
    """The trainer itself, untyped: Lightning sets ``callbacks``, ``datamodule`` and others without declaring them."""
    return trainer


def check_trainer(trainer: Trainer, owner: Callback) -> None:
    """Refuse, before anything is set up, what can't work.

    Raises:
        ConfigurationError: no validation loop, an unsupported strategy, or a callback that keeps a copy of the weights.
    """
    name = type(owner).__name__
    if not trainer.enable_validation:
        raise ConfigurationError(
            f"{name} judges the model by its validation metric, but validation is off: give fit a validation loader, "
            "define validation_step, and leave limit_val_batches above 0."
        )
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(
        strategy, (DeepSpeedStrategy, XLAStrategy)
    ):
        raise ConfigurationError(
            f"{name} changes the shapes of the network's parameters, which {type(strategy).__name__} shards or "
            "replaces; use Trainer(strategy='ddp') on several devices, or devices=1."
        )
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise ConfigurationError(
            f"{name} does not work with processes that are forked or spawned (ddp_spawn, ddp_fork): their "
            "weights come back to a network that was not pruned. Use strategy='ddp' in a script."
        )
    if getattr(strategy, "_ddp_comm_state", None) is not None:
        raise ConfigurationError(
            f"{name} does not work with a ddp_comm_state: it is sized by gradients whose shapes a prune changes. Leave "
            "it out; a ddp_comm_hook without a state, such as fp16_compress_hook, is fine."
        )
    refused = [c for c in loose(trainer).callbacks if {b.__name__ for b in type(c).__mro__} & set(_NEIGHBOURS_REFUSED)]
    if refused:
        raise ConfigurationError(
            f"{name} does not work beside {type(refused[0]).__name__}: it keeps a copy of the weights, or masks, "
            "that a structural prune would leave behind. Remove it, use it in a later fit, or take EMAWeightAveraging."
        )


def monitored(trainer: Trainer, monitor: str) -> float:
    """The latest value of the monitored metric, averaged over the ranks.

    Raises:
        ConfigurationError: validation did not log it; the message lists what it logged.
    """
    metrics = trainer.callback_metrics
    if monitor not in metrics:
        raise ConfigurationError(
            f"monitor={monitor!r} was not logged by validation; it logged {sorted(metrics) or 'nothing'}. "
            "Log it in validation_step with self.log(...), on_epoch=True."
        )
    return mean_score(trainer, float(metrics[monitor]))


def announce(trainer: Trainer, record: StepRecord, budget: Budget, dense_macs: float) -> None:
    """One line for a step that was closed, and its figures to the user's loggers."""
    allowed = budget.max_drop if math.isfinite(budget.max_drop) else None
    trainer.print(step_line(record, baseline_macs=dense_macs, max_drop=allowed, monitor=budget.monitor))
    values = {
        "hqp/kept": float(record.outcome == "kept"),
        "hqp/macs": record.macs,
        "hqp/params": float(record.params),
        "hqp/accuracy_drop": record.accuracy_drop,
        "hqp/step": record.step,
    }
    for logger in trainer.loggers:
        logger.log_metrics({k: v for k, v in values.items() if v is not None}, step=trainer.global_step)


def show_saliency(trainer: Trainer, saliency: Mapping[str, Tensor]) -> None:
    """A histogram of the saliency of all channels to every TensorBoard logger.

    Of the decimal logarithm, since the values lie orders of magnitude apart; those that are zero are left out.
    """
    values = torch.cat([v.flatten() for v in saliency.values()]).log10()
    values = values[values.isfinite()]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and len(values):
            logger.experiment.add_histogram("hqp/log10_saliency", values, trainer.global_step)


def load_validation(trainer: Trainer) -> None:
    """Have the validation loaders made where ``fit`` has not come to it yet, or never does: no epoch was left."""
    trainer.validating = True  # the logger connector asks for the active loop
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    trainer.training = True


def validate_now(trainer: Trainer) -> None:
    """Run the whole validation loop from within ``fit``, as Lightning itself does between training batches."""
    trainer.validating = True  # the logger connector asks for the active loop
    try:
        trainer.fit_loop.epoch_loop.val_loop.run()
    finally:
        trainer.training = True


def batches(
    trainer: Trainer,
    pl_module: LightningModule,
    network: nn.Module,
    loss_fn: LossFn | None,
    stage: str,
    limit: int,
    seed: int | None = None,
) -> Iterator[tuple[Any, ...]]:
    """The network's inputs for the first ``limit`` batches of the first train or validation loader.

    With a ``seed`` the loader's own generators start from it, so that these batches are the same however long training
    went on before; afterwards they are where they were.
    """
    loaders = trainer.train_dataloader if stage == "train" else trainer.val_dataloaders
    loader = _first(loaders)
    if loader is None:
        return
    if getattr(loader, "persistent_workers", False):
        # Such a loader has one iterator only, and the epoch that is about to begin holds it already.
        loader = copy.copy(loader)
        loader._iterator = None
    with _rewound(loader, seed):
        for i, batch in enumerate(loader):
            if i == limit:
                return
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = pl_module._apply_batch_transfer_handler(batch, device=pl_module.device, dataloader_idx=0)
            yield network_inputs(pl_module, network, batch, loss_fn)


@contextmanager
def _rewound(loader: Any, seed: int | None) -> Iterator[None]:
    owners = (loader, *(getattr(loader, n, None) for n in ("sampler", "batch_sampler", "dataset")))
    held = {id(v): v for o in owners for v in getattr(o, "__dict__", {}).values() if isinstance(v, torch.Generator)}
    states = [(g, g.get_state()) for g in held.values()]
    try:
        if seed is not None:
            for generator, _ in states:
                generator.manual_seed(seed)
        yield
    finally:
        if seed is not None:
            for generator, state in states:
                generator.set_state(state)


@contextmanager
def fixed_seed(seed: int | None = None) -> Iterator[None]:
    """Leave the global random states as they were; inside, start from ``seed`` if there is one."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def schedulers(trainer: Trainer) -> list[Any]:
    """The learning-rate schedulers of the run."""
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _first(loaders: Any) -> Any:
    while isinstance(loaders, (list, tuple, dict)):
        values = list(loaders.values()) if isinstance(loaders, dict) else list(loaders)
        if not values:
            return None
        loaders = values[0]
    return loaders
