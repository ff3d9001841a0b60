"""Re-wrap the model for the strategy around a change of its parameters' shapes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.parallel import DistributedDataParallel

__all__ = ["rewrapped"]


@contextmanager
def rewrapped(trainer: Any, pl_module: Any) -> Iterator[None]:
    """Inside, the bare module is the strategy's model; afterwards a fresh DDP wrapper is around it, if there was one.

    DDP sizes its gradient buckets once. The old wrapper must be gone before the new one is made: a live reference to
    it would keep its hooks on the parameters, and the next backward would wait for them forever.
    """
    strategy = trainer.strategy
    wrapped = isinstance(strategy.model, DistributedDataParallel)
    if wrapped:
        strategy.model = pl_module
        gc.collect()
    try:
        yield
    finally:
        if wrapped:
            strategy.model = strategy._setup_model(pl_module)
            strategy._register_ddp_hooks()
