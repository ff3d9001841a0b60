"""One validation pass on some samples, evenly spread, after which Trainer, module and random states are as before."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.loop.spreading import spread
from hqp_lightning.loop.trainer import loose
from hqp_lightning.loop.untouched import fixed_seed, remembered

__all__ = ["check_parts", "validated"]


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
        module.__dict__["configure_callbacks"] = list  # none of them either
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
