"""The network's inputs from the Trainer's loaders, and the random states around them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from hqp_lightning.loop.network import LossFn, network_inputs

__all__ = ["batches", "fixed_seed"]


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
