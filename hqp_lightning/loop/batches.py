"""The network's inputs from the Trainer's loaders, and the random states around them."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import LoaderError
from hqp_lightning.loop.calls import Receiver
from hqp_lightning.loop.losses import LossFn
from hqp_lightning.loop.spreading import spread

__all__ = ["batches", "prepared", "training_calls"]

IMAGES = 256
"""Training samples, over all ranks, that a step learns from what it replaces."""


def batches(
    trainer: Trainer,
    pl_module: LightningModule,
    network: nn.Module,
    loss_fn: LossFn | None,
    stage: str,
    limit: int,
    seed: int | None = None,
    like: Call | None = None,
) -> Iterator[Call]:
    """What the network is called with for the first ``limit`` batches of the first train or validation loader.

    Training batches are prepared as validation's are, and get the height and width of ``like``, a call in validation.

    """
    receiver = Receiver(trainer, pl_module, network, loss_fn, like)
    for i, batch in enumerate(prepared(trainer, pl_module, stage, limit, seed)):
        yield receiver.call(batch, i, training=stage == "train")


def training_calls(
    trainer: Trainer, pl_module: LightningModule, network: nn.Module, loss_fn: LossFn | None, like: Call
) -> Iterator[Call]:
    """This rank's share of the first `IMAGES` training samples, in whole batches, see `batches`."""
    count = IMAGES // trainer.world_size
    for call in batches(trainer, pl_module, network, loss_fn, "train", IMAGES, like=like):
        yield call
        count -= next((len(x) for x in call.tensors() if x.dim()), 1)
        if count <= 0:
            return


def prepared(
    trainer: Trainer,
    pl_module: LightningModule,
    stage: str,
    limit: int,
    seed: int | None = None,
    samples: int | None = None,
) -> Iterator[Any]:
    """The first ``limit`` batches of the first train or validation loader, as a step gets them.

    With ``samples`` they are so many at most, spread evenly over the loader's data where it is in a fixed order.

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
    loader = loader if samples is None else spread(loader, samples, limit)
    with _rewound(loader, seed), closing(_told(loader, stage)) as told:
        for i, batch in enumerate(told):
            if i == limit:
                return
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            yield pl_module._apply_batch_transfer_handler(batch, device=pl_module.device, dataloader_idx=0)


def _told(loader: Any, stage: str) -> Generator[Any, None, None]:
    iterator = None
    try:
        iterator = iter(loader)
        yield from iterator
    except Exception as error:
        raise LoaderError(f"the {stage} loader failed: {type(error).__name__}: {error}") from error
    finally:  # left to the garbage collection, each of its workers is waited for, for five seconds
        getattr(iterator, "_shutdown_workers", lambda: None)()


@contextmanager
def _rewound(loader: Any, seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    owners = (loader, *(getattr(loader, n, None) for n in ("sampler", "batch_sampler", "dataset")))
    held = {id(v): v for o in owners for v in getattr(o, "__dict__", {}).values() if isinstance(v, torch.Generator)}
    states = [(g, g.get_state()) for g in held.values()]
    try:
        for generator, _ in states:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _first(loaders: Any) -> Any:
    while isinstance(loaders, (list, tuple, dict)):
        values = list(loaders.values()) if isinstance(loaders, dict) else list(loaders)
        if not values:
            return None
        loaders = values[0]
    return loaders
