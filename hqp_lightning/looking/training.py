"""How much training an epoch of the user's is, as far as it can be known without beginning one."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from hqp_lightning.loop.untouched import fixed_seed

__all__ = ["healing_batches"]


def healing_batches(owner: Any, trainer: Trainer) -> int | None:
    """Batches of a training epoch; None where the loader or its length is not known.

    Args:
        owner: the datamodule or module that has the training loader.
        trainer: its limit of training batches counts.
    """
    try:
        with fixed_seed():
            batches = len(owner.train_dataloader())
    except Exception:  # whatever user code raises where training was not set up, or there is no loader
        return None
    limit = trainer.limit_train_batches
    if isinstance(limit, int) and not isinstance(limit, bool):
        return min(batches, limit)
    return batches if limit is None else max(int(batches * limit), 1)
