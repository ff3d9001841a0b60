"""One validation pass on some samples, evenly spread, after which Trainer, module and random states are as before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.trainer import loose
from hqp_lightning.loop.untouched import fixed_seed, remembered

__all__ = ["check_parts", "spread", "validated"]

_BATCH = 16  # samples, where a loader does not say


def check_parts(trainer: Trainer, module: LightningModule, data: Any) -> None:
    """Refuse what is no Trainer, module or data, and a Trainer that is at work or has several devices.

    Raises:
        ConfigurationError: with what was given.
    """
    for name, given, kind in (("trainer", trainer, Trainer), ("module", module, LightningModule)):
        if not isinstance(given, kind):
            raise ConfigurationError(f"{name} is a {type(given).__name__}; expected a {kind.__name__}.")
    if trainer.state.status == TrainerStatus.RUNNING:
        raise ConfigurationError("this Trainer is at work: look before fit, or after it.")
    if trainer.world_size > 1:
        raise ConfigurationError(f"the Trainer has {trainer.world_size} devices: look with Trainer(devices=1).")
    if data is not None and not isinstance(data, LightningDataModule) and not hasattr(data, "__iter__"):
        raise ConfigurationError(
            f"datamodule is a {type(data).__name__}; expected a LightningDataModule, a validation loader, or None for "
            "the module's own."
        )


def validated(trainer: Trainer, module: LightningModule, data: Any, callback: Callback, samples: int) -> int | None:
    """Validate with ``callback`` alone beside and without loggers.

    Args:
        trainer: the user's.
        module: the user's.
        data: a LightningDataModule, a validation loader, or None for the module's own.
        callback: what hears of the pass.
        samples: about how many are used.

    Returns:
        How many samples all of the validation data has, where that is known.

    Raises:
        ConfigurationError: there is no validation loader or step.
    """
    counted: list[int | None] = []

    def fewer(loaders: Any) -> Any:
        counted.append(_length(next(iter(_all(loaders)), None)))
        if isinstance(loaders, Mapping):
            return {n: spread(loader, samples) for n, loader in loaders.items()}
        return [spread(loader, samples) for loader in _all(loaders)]

    owner = data if isinstance(data, LightningDataModule) else module
    with fixed_seed(), remembered(module), _as_before(trainer, module, owner):
        loose(trainer).callbacks, loose(trainer).loggers, trainer.limit_val_batches = [callback], [], 1.0
        try:
            if data is None or owner is data:
                theirs = owner.val_dataloader
                owner.__dict__["val_dataloader"] = lambda: fewer(theirs())
            own = {"datamodule": data} if owner is data else {"dataloaders": None if data is None else fewer(data)}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Total length of")  # of an empty loader; told by who asked
                trainer.validate(module, verbose=False, **own)
        except MisconfigurationException as error:
            raise ConfigurationError(
                f"{type(owner).__name__} gives nothing to validate: {' '.join(str(error).split())}"
            ) from error
    return counted[-1] if counted else None


def spread(loader: Any, samples: int) -> Any:
    """A loader of samples that lie evenly in the data of ``loader``: the first ones are often of one class.

    Of loaders that are not plain, or shuffle, it is the first batches.

    Examples:
        >>> [b.tolist() for b in spread(DataLoader(range(100), 2), 4)]
        [[0, 25], [50, 75]]
    """
    plain = type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler
    if not plain or not isinstance(loader.sampler, SequentialSampler):
        return _First(loader, math.ceil(samples / (getattr(loader, "batch_size", None) or _BATCH)))
    count = len(loader.sampler)
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=[i * count // samples for i in range(samples)] if count > samples else range(count),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


class _First:
    """The first batches of a loader."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader, self.batches = loader, batches

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.batches)


@contextmanager
def _as_before(trainer: Trainer, module: LightningModule, owner: Any) -> Iterator[None]:
    kept = {n: getattr(trainer, n) for n in ("callbacks", "loggers", "limit_val_batches")}
    modes, device, attributes = {m: m.training for m in module.modules()}, module.device, dict(owner.__dict__)
    try:
        yield
    finally:
        for name in ("val_dataloader", "trainer"):
            if owner is module:
                continue  # remembered
            owner.__dict__.pop(name, None)
            owner.__dict__.update({name: attributes[name]} if name in attributes else {})
        for name, value in kept.items():
            setattr(trainer, name, value)
        for m, mode in modes.items():
            m.training = mode
        module.to(device)


def _all(loaders: Any) -> list[Any]:
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]


def _length(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):  # a stream, or a loader of another kind
        return None
